// Checks tests/vectors/merkle.json against OpenZeppelin's own library: roots, leaf hashes and proofs.
//   node test/oz_tree.mjs        (in contracts/, after `npm ci --ignore-scripts`)
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { StandardMerkleTree } from '@openzeppelin/merkle-tree';

const TYPES = ['uint256', 'address', 'address', 'uint256', 'uint256', 'uint256', 'uint256'];
const path = new URL('../../tests/vectors/merkle.json', import.meta.url);
const { cases } = JSON.parse(readFileSync(path, 'utf8'));
assert.ok(cases.length >= 5, `${path.pathname}: only ${cases.length} cases`);

let leaves = 0;
for (const [i, { chain_id, settlement, leaves: entries, root }] of cases.entries()) {
  assert.ok(entries.length > 0 && Number.isSafeInteger(chain_id), `case ${i}: no leaves, or a chain id that JSON rounds`);
  const values = entries.map((e) => [
    chain_id,
    settlement,
    e.account,
    e.cumulative_shares,
    e.epoch_shares,
    e.debt_before,
    e.operator_revenue,
  ]);
  const tree = StandardMerkleTree.of(values, TYPES);
  assert.equal(root, tree.root, `case ${i}: root`);
  for (const [j, entry] of entries.entries()) {
    assert.equal(entry.leaf, tree.leafHash(values[j]), `case ${i}, leaf ${j}: hash`);
    assert.deepEqual(entry.proof, tree.getProof(values[j]), `case ${i}, leaf ${j}: proof`);
    leaves += 1;
  }
}
console.log(`oz_tree: ${cases.length} trees and ${leaves} proofs equal @openzeppelin/merkle-tree's`);
