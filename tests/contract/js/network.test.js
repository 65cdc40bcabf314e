// Egress rules with the official JavaScript SDK; run by test_network.py, which makes the internet.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { ALL_TRAFFIC, Sandbox } from 'e2b'

const { NAME_SERVER, HTTPS_PORT, HTTP_PORT, OTHER } = process.env

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

const network = {
  allowOut: ['allowed.example'],
  denyOut: [ALL_TRAFFIC],
  dnsServers: [NAME_SERVER],
}

test('domains', () => withSandbox({ network }, async (sandbox) => {
  assert.equal(await reaches(sandbox, `https://allowed.example:${HTTPS_PORT}`), true)
  assert.equal(await reaches(sandbox, `https://other.example:${HTTPS_PORT}`), false)
  assert.equal(await reaches(sandbox, `http://${OTHER}:${HTTP_PORT}`), false)
}))

test('an update replaces everything', () => withSandbox({ network }, async (sandbox) => {
  await sandbox.updateNetwork({ denyOut: [OTHER] })
  assert.equal(await reaches(sandbox, `http://${OTHER}:${HTTP_PORT}`), false)
  assert.equal(await reaches(sandbox, `http://${NAME_SERVER}:${HTTP_PORT}`), true)
  await sandbox.updateNetwork({})
  assert.equal(await reaches(sandbox, `http://${OTHER}:${HTTP_PORT}`), true)
}))
