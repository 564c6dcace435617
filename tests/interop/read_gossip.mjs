// A libp2p peer that shares no code with ours: it connects, pings, identifies, and prints what it hears on a topic.
//   node read_gossip.mjs MULTIADDR TOPIC SECONDS
// One JSON object per line: {"step": "connected" | "pinged" | "identified" | "heard", …}. Exits with 0 once it has heard
// one message, with 1 and the reason on stderr otherwise.
import './with_resolvers.mjs'

import { noise } from '@chainsafe/libp2p-noise'
import { yamux } from '@chainsafe/libp2p-yamux'
import { gossipsub } from '@chainsafe/libp2p-gossipsub'
import { identify } from '@libp2p/identify'
import { ping } from '@libp2p/ping'
import { tcp } from '@libp2p/tcp'
import { multiaddr } from '@multiformats/multiaddr'
import { createLibp2p } from 'libp2p'

const [address, topic, seconds] = process.argv.slice(2)
const say = (step, fields = {}) => console.log(JSON.stringify({ step, ...fields }))

setTimeout(() => {
  console.error(`nothing heard on ${topic} within ${seconds} s`)
  process.exit(1)
}, seconds * 1000)

const node = await createLibp2p({
  addresses: { listen: [] },
  transports: [tcp()],
  connectionEncrypters: [noise()],
  streamMuxers: [yamux()],
  services: { identify: identify({ runOnConnectionOpen: false }), ping: ping(), pubsub: gossipsub() },
})

const heard = new Promise((resolve) => {
  node.services.pubsub.addEventListener('message', (event) => {
    if (event.detail.topic === topic) resolve(event.detail)
  })
})
node.services.pubsub.subscribe(topic)

const connection = await node.dial(multiaddr(address))
say('connected', { peer: connection.remotePeer.toString(), encryption: connection.encryption, muxer: connection.multiplexer })
say('pinged', { ms: await node.services.ping.ping(connection.remotePeer) })
const found = await node.services.identify.identify(connection)
say('identified', { peer: found.peerId.toString(), protocols: found.protocols })
const message = await heard
say('heard', { from: message.from.toString(), type: message.type, data: Buffer.from(message.data).toString('utf8') })
await node.stop()
process.exit(0)
