// A receiver of mailhook's webhooks with Node's own modules alone.
//
//   WEBHOOK_SECRET=whsec_... PORT=8000 node receiver.mjs

import { createHmac, timingSafeEqual } from 'node:crypto'
import { createServer } from 'node:http'

// begin verify

// keyOf returns the key bytes that a secret stands for.
function keyOf(secret) {
  const key = secret.startsWith('whsec_')
    ? Buffer.from(secret.slice('whsec_'.length), 'base64')
    : Buffer.from(secret, 'utf8')
  if (key.length === 0) throw new Error('the secret is empty')
  return key
}

// verify throws unless the request was signed with the key within five minutes of now (in seconds).
// The body is a Buffer with the bytes as received, before any JSON parser.
function verify(key, headers, body, now) {
  const id = headers['webhook-id']
  const sentAt = headers['webhook-timestamp']
  const signatures = headers['webhook-signature']
  if (!id || !sentAt || !signatures) throw new Error('a webhook header is missing')
  if (!/^[0-9]+$/.test(sentAt)) throw new Error('webhook-timestamp is not a number')
  if (Math.abs(now - Number(sentAt)) > 300) throw new Error('webhook-timestamp is more than five minutes off')
  const hash = createHmac('sha256', key).update(`${id}.${sentAt}.`).update(body).digest('base64')
  const want = Buffer.from(`v1,${hash}`)
  const matches = signatures.split(' ').some((signature) => {
    const got = Buffer.from(signature)
    return got.length === want.length && timingSafeEqual(got, want)
  })
  if (!matches) throw new Error('no signature matches')
}

// end verify

const maxBody = 1 << 20
const key = keyOf(process.env.WEBHOOK_SECRET ?? '')

async function receive(req, res) {
  const answer = (status, text) => res.writeHead(status).end(text)
  const chunks = []
  let size = 0
  for await (const chunk of req) {
    size += chunk.length
    if (size <= maxBody) chunks.push(chunk)
  }
  if (size > maxBody) return answer(400, 'the body is too large')
  const body = Buffer.concat(chunks)
  try {
    verify(key, req.headers, body, Date.now() / 1000)
  } catch (err) {
    return answer(401, err.message)
  }
  let event
  try {
    event = JSON.parse(body)
  } catch {
    return answer(400, 'the body is not JSON')
  }
  // Here: store the event under its id, ignore an id that is stored already, work on it later.
  console.log(event.id, event.type)
  answer(204)
}

const server = createServer((req, res) => {
  receive(req, res).catch(() => res.destroy()) // the sender went away in the middle of the body
})
server.listen(Number(process.env.PORT ?? 8000), '127.0.0.1')
