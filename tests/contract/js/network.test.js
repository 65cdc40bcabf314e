// Egress rules with the official JavaScript SDK; run by test_network.py, which makes the internet.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { ALL_TRAFFIC, Sandbox } from 'e2b'

const { PUBLIC, HTTPS_PORT, HTTP_PORT, OTHER } = process.env

async function withSandbox(options, use) {
  const sandbox = await Sandbox.create({ timeoutMs: 300_000, ...options })
  try {
    await use(sandbox)
  } finally {
    await sandbox.kill()
  }
}

async function reaches(sandbox, url) {
  try {
    await sandbox.commands.run(`curl -sSk --connect-timeout 3 --max-time 5 ${url}`)
    return true
  } catch {
    return false
  }
}

// This SDK has no dnsServers, so its domains cannot be those of the small internet.
const network = { allowOut: [PUBLIC, 'no-such.example'], denyOut: [ALL_TRAFFIC] }

test('allowed addresses beside domains', () => withSandbox({ network }, async (sandbox) => {
  assert.equal(await reaches(sandbox, `https://${PUBLIC}:${HTTPS_PORT}`), true)
  assert.equal(await reaches(sandbox, `http://${OTHER}:${HTTP_PORT}`), false)
  const forged = `--resolve other.example:${HTTPS_PORT}:${OTHER} https://other.example:${HTTPS_PORT}`
  assert.equal(await reaches(sandbox, forged), false)
  const { allowOut, denyOut } = (await sandbox.getInfo()).network
  assert.deepEqual({ allowOut, denyOut }, network)
}))

test('a domain needs all traffic denied', () => assert.rejects(
  Sandbox.create({ network: { allowOut: ['a.example'] } }),
  /you must include 'ALL_TRAFFIC' in deny out/,
))

test('an update replaces everything', () => withSandbox({ network }, async (sandbox) => {
  await sandbox.updateNetwork({ denyOut: [OTHER] })
  assert.equal(await reaches(sandbox, `http://${OTHER}:${HTTP_PORT}`), false)
  assert.equal(await reaches(sandbox, `http://${PUBLIC}:${HTTP_PORT}`), true)
  await sandbox.updateNetwork({})
  assert.equal(await reaches(sandbox, `http://${OTHER}:${HTTP_PORT}`), true)
}))
