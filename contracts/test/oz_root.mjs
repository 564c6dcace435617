// The tree of @openzeppelin/merkle-tree over leaf hashes, one in hex per line on stdin: prints its root, and the SHA-256
// of the proofs of every STEP-th leaf, each one's hashes from below one after the other.
//   node test/oz_root.mjs STEP < leaves.txt        (in contracts/)
import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { SimpleMerkleTree } from '@openzeppelin/merkle-tree';

const leaves = readFileSync(0, 'utf8').trim().split('\n');
const tree = SimpleMerkleTree.of(leaves);
const proofs = createHash('sha256');
for (let i = 0; i < leaves.length; i += Number(process.argv[2])) {
  for (const sibling of tree.getProof(i)) proofs.update(Buffer.from(sibling.slice(2), 'hex'));
}
console.log(tree.root, proofs.digest('hex'));
