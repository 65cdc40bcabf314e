// Volumes with the official JavaScript SDK.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { randomBytes } from 'node:crypto'
import { Sandbox, Volume } from 'e2b'

async function withVolume(use) {
  const volume = await Volume.create(`js-${randomBytes(4).toString('hex')}`)
  try {
    await use(volume)
  } finally {
    await Volume.destroy(volume.volumeId)
  }
}

test('content without a sandbox', () => withVolume(async (volume) => {
  assert.ok((await Volume.list()).some((one) => one.volumeId === volume.volumeId))
  const same = await Volume.connect(volume.volumeId)
  await same.writeFile('/a/b.txt', 'hello', { force: true })
  assert.equal(await volume.readFile('/a/b.txt'), 'hello')
  await volume.makeDir('/c')
  const paths = (await volume.list('/', { depth: 2 })).map((entry) => entry.path)
  assert.deepEqual(paths, ['/a', '/a/b.txt', '/c'])
  const changed = await volume.updateMetadata('/c', { mode: 0o700 })
  assert.equal(changed.mode, 0o700)
  await volume.remove('/a')
  assert.equal(await volume.exists('/a/b.txt'), false)
  await assert.rejects(volume.readFile('/a/b.txt'), /not found/i)
}))

test('mounted in a sandbox', () => withVolume(async (volume) => {
  const sandbox = await Sandbox.create({ timeoutMs: 120_000, volumeMounts: { '/mnt/data': volume } })
  try {
    await volume.writeFile('/in', 'from outside')
    assert.equal((await sandbox.commands.run('cat /mnt/data/in')).stdout, 'from outside')
    await sandbox.files.write('/mnt/data/out', 'from inside')
    assert.equal(await volume.readFile('/out'), 'from inside')
  } finally {
    await sandbox.kill()
  }
  assert.equal(await volume.readFile('/out'), 'from inside')
}))
