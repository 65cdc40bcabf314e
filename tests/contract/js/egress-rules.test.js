// Rules and secrets with the official JavaScript SDK; run by test_egress_rules.py.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { Sandbox, Secret } from 'e2b'

const { E2B_API_URL, E2B_API_KEY, PUBLIC, PORT, VALUE } = process.env
const headers = { Authorization: 'Bearer ${e2b.secrets.egress-token}' }
const rules = { 'allowed.example': [{ transform: { headers } }] }

test('a header with a secret is put in outside', async () => {
  const sandbox = await Sandbox.create({ timeoutMs: 300_000, network: { rules } })
  try {
    assert.deepEqual((await sandbox.getInfo()).network.rules, rules)
    // This SDK cannot name the small internet's name server.
    const answer = await fetch(`${E2B_API_URL}/sandboxes/${sandbox.sandboxId}/network`, {
      method: 'PUT',
      headers: { 'X-API-Key': E2B_API_KEY, 'Content-Type': 'application/json' },
      body: JSON.stringify({ rules, dnsServers: [PUBLIC] }),
    })
    assert.equal(answer.status, 204)
    const { stdout } = await sandbox.commands.run(`curl -sS https://allowed.example:${PORT}/`)
    assert.equal(JSON.parse(stdout).headers.authorization, `Bearer ${VALUE}`)
    await sandbox.updateNetwork({})
    assert.equal((await sandbox.getInfo()).network.rules, undefined)
  } finally {
    await sandbox.kill()
  }
})

test('secrets are made and destroyed, and never read', async () => {
  const name = 'contract-js'
  await Secret.destroy(name)
  const made = await Secret.create(name, VALUE)
  assert.equal(JSON.stringify(made).includes(VALUE), false)
  assert.equal(await Secret.destroy(name), true)
  assert.equal(await Secret.destroy(name), false)
})
