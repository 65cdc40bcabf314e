// Pause, fork and snapshots with the official JavaScript SDK; run by test_javascript.py.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { Sandbox, NotFoundError } from 'e2b'

const BOOT_ID = '/proc/sys/kernel/random/boot_id'

async function withSandbox(options, use) {
  const sandbox = await Sandbox.create({ timeoutMs: 300_000, ...options })
  try {
    await use(sandbox)
  } finally {
    await sandbox.kill()
  }
}

test('pause and connect keep processes and files', () => withSandbox({}, async (sandbox) => {
  await sandbox.files.write('state.txt', 'before')
  const sleeping = await sandbox.commands.run('sleep 600', { background: true, timeoutMs: 0 })
  const bootId = await sandbox.files.read(BOOT_ID)
  assert.equal(await sandbox.pause(), true)
  assert.equal(await sandbox.pause(), false)
  assert.equal(await sandbox.isRunning(), false)
  assert.equal((await sandbox.getInfo()).state, 'paused')
  const again = await sandbox.connect()
  assert.equal(again.sandboxId, sandbox.sandboxId)
  assert.equal(await sandbox.files.read('state.txt'), 'before')
  assert.equal(await sandbox.files.read(BOOT_ID), bootId)
  assert.ok((await sandbox.commands.list()).some((one) => one.pid === sleeping.pid))
}))

test('a pause can keep files only', () => withSandbox({}, async (sandbox) => {
  await sandbox.files.write('state.txt', 'before')
  const bootId = await sandbox.files.read(BOOT_ID)
  assert.equal(await sandbox.pause({ keepMemory: false }), true)
  await sandbox.connect()
  assert.equal(await sandbox.files.read('state.txt'), 'before')
  assert.notEqual(await sandbox.files.read(BOOT_ID), bootId)
}))

test('lifecycle: traffic wakes it', () => withSandbox(
  { lifecycle: { onTimeout: 'pause', autoResume: true } },
  async (sandbox) => {
    await sandbox.setTimeout(1_000)
    while ((await sandbox.getInfo()).state !== 'paused') await new Promise((r) => setTimeout(r, 100))
    assert.equal((await sandbox.commands.run('echo awake')).stdout, 'awake\n')
  },
))

test('fork', () => withSandbox({}, async (sandbox) => {
  await sandbox.files.write('state.txt', 'before')
  const forks = await sandbox.fork({ count: 2, timeoutMs: 60_000 })
  try {
    assert.equal(new Set([sandbox, ...forks].map((one) => one.sandboxId)).size, 3)
    for (const fork of forks) {
      assert.ok(fork instanceof Sandbox)
      assert.equal(await fork.files.read('state.txt'), 'before')
      await fork.files.write('state.txt', 'after')
    }
    assert.equal(await sandbox.files.read('state.txt'), 'before')
  } finally {
    for (const fork of forks) await fork.kill?.()
  }
}))

test('snapshots', () => withSandbox({}, async (sandbox) => {
  await sandbox.files.write('state.txt', 'before')
  const { snapshotId } = await sandbox.createSnapshot()
  const listed = await sandbox.listSnapshots().nextItems()
  assert.deepEqual(listed.map((one) => one.snapshotId), [snapshotId])
  const copy = await Sandbox.create(snapshotId)
  assert.equal(await copy.files.read('state.txt'), 'before')
  await copy.kill()
  assert.equal(await Sandbox.deleteSnapshot(snapshotId), true)
  assert.equal(await Sandbox.deleteSnapshot(snapshotId), false)
}))

test('a killed sandbox is not paused and not forked', async () => {
  const sandbox = await Sandbox.create()
  await sandbox.pause()
  assert.equal(await sandbox.kill(), true)
  await assert.rejects(sandbox.pause(), NotFoundError)
  await assert.rejects(sandbox.fork(), NotFoundError)
})
