// The official JavaScript SDK against a running stack; run by test_javascript.py (node --test).
import assert from 'node:assert/strict'
import { test, before, after } from 'node:test'
import { Sandbox, NotFoundError, CommandExitError, FilesystemEventType } from 'e2b'

let sandbox
before(async () => { sandbox = await Sandbox.create({ timeoutMs: 300_000, metadata: { sdk: 'js' } }) })
after(async () => { await sandbox?.kill() })

test('a command answers', async () => {
  const result = await sandbox.commands.run('echo $((6 * 7)); echo problem >&2')
  assert.equal(result.stdout, '42\n')
  assert.equal(result.stderr, 'problem\n')
})

test('a failing command throws with its exit code', async () => {
  await assert.rejects(sandbox.commands.run('exit 3'), (error) => {
    assert.ok(error instanceof CommandExitError)
    assert.equal(error.exitCode, 3)
    return true
  })
})

test('large output arrives whole', async () => {
  const { stdout } = await sandbox.commands.run('seq 1 100000')
  assert.equal(stdout.length, 588895)
  assert.ok(stdout.endsWith('100000\n'))
})

test('files: write, read, list, move, remove', async () => {
  const bytes = new Uint8Array(300_000).map((_, i) => i % 251)
  const info = await sandbox.files.write('js/data.bin', new Blob([bytes]).stream())
  assert.equal(info.path, '/home/user/js/data.bin')
  assert.deepEqual(await sandbox.files.read('js/data.bin', { format: 'bytes' }), bytes)
  await sandbox.files.write('js/empty.txt', '')
  assert.equal(await sandbox.files.read('js/empty.txt'), '')
  await sandbox.files.write([{ path: 'js/a.txt', data: 'a' }, { path: 'js/b.txt', data: 'b' }])
  assert.deepEqual((await sandbox.files.list('js')).map((e) => e.name), ['a.txt', 'b.txt', 'data.bin', 'empty.txt'])
  await sandbox.files.rename('js/a.txt', 'js/c.txt')
  assert.equal(await sandbox.files.exists('js/a.txt'), false)
  await sandbox.files.remove('js')
  assert.equal(await sandbox.files.exists('js'), false)
  await assert.rejects(sandbox.files.read('js/none'), NotFoundError)
})

test('watching a directory', async () => {
  await sandbox.files.makeDir('watched')
  const seen = []
  let done
  const three = new Promise((resolve) => { done = resolve })
  const handle = await sandbox.files.watchDir('watched', (event) => {
    seen.push([event.name, event.type])
    if (seen.length === 3) done()
  })
  await sandbox.files.write('watched/x', '1')
  await three
  assert.deepEqual(seen, [
    ['x', FilesystemEventType.CREATE],
    ['x', FilesystemEventType.CHMOD],
    ['x', FilesystemEventType.WRITE],
  ])
  await handle.stop()
})

test('terminal', async () => {
  let output = ''
  const decoder = new TextDecoder()
  const terminal = await sandbox.pty.create({ cols: 90, rows: 30, onData: (data) => { output += decoder.decode(data) } })
  await sandbox.pty.sendInput(terminal.pid, new TextEncoder().encode('stty size; exit 0\n'))
  await terminal.wait()
  assert.match(output, /30 90/)
})

test('background command, stdin, kill', async () => {
  const cat = await sandbox.commands.run('cat', { background: true, stdin: true })
  await sandbox.commands.sendStdin(cat.pid, 'hello')
  await sandbox.commands.closeStdin(cat.pid)
  assert.equal((await cat.wait()).stdout, 'hello')
  const sleep = await sandbox.commands.run('sleep 100', { background: true })
  assert.equal(await sandbox.commands.kill(sleep.pid), true)
  assert.equal(await sandbox.commands.kill(sleep.pid), false)
})

test('info, list, timeout, connect', async () => {
  const info = await sandbox.getInfo()
  assert.equal(info.name, 'base')
  assert.deepEqual(info.metadata, { sdk: 'js' })
  const ids = []
  const pages = Sandbox.list({ query: { metadata: { sdk: 'js' } } })
  while (pages.hasNext) ids.push(...(await pages.nextItems()).map((s) => s.sandboxId))
  assert.ok(ids.includes(sandbox.sandboxId))
  await sandbox.setTimeout(600_000)
  const again = await Sandbox.connect(sandbox.sandboxId)
  assert.equal((await again.commands.run('whoami')).stdout, 'user\n')
})

test('kill is final', async () => {
  const other = await Sandbox.create()
  assert.equal(await other.kill(), true)
  assert.equal(await other.kill(), false)
  assert.equal(await other.isRunning(), false)
  await assert.rejects(Sandbox.connect(other.sandboxId), NotFoundError)
})
