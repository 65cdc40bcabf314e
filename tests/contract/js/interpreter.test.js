// The unmodified @e2b/code-interpreter client against our server in the shipped template.
import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { Sandbox } from '@e2b/code-interpreter'

const options = { requestTimeoutMs: 120_000 }
let sandbox

before(async () => {
  sandbox = await Sandbox.create(process.env.ALCOVE_TEST_TEMPLATE, { timeoutMs: 300_000, ...options })
})
after(() => sandbox?.kill())

test('keeps state between cells', async () => {
  await sandbox.runCode('x = 1')
  const execution = await sandbox.runCode('x += 1; x')
  assert.equal(execution.text, '2')
})

test('streams output as it comes, in any script', async () => {
  const seen = []
  const execution = await sandbox.runCode("print('größe 😀'); 'done'", {
    onStdout: ({ line }) => { seen.push(line) },
  })
  assert.deepEqual(seen, ['größe 😀\n'])
  assert.equal(execution.text, 'done')
})

test('runs JavaScript and TypeScript', async () => {
  const js = await sandbox.runCode('await Promise.resolve(6 * 7)', { language: 'js' })
  assert.equal(js.text, '42')
  const ts = await sandbox.runCode('const n: number = 1; n + 1', { language: 'ts' })
  assert.equal(ts.text, '2')
})

test('sets variables for one call', async () => {
  const look = "import os; os.environ.get('ONE', 'none')"
  const execution = await sandbox.runCode(look, { envs: { ONE: "it's" } })
  assert.equal(execution.text, "it's")
  assert.equal((await sandbox.runCode(look)).text, 'none')
})

test('reports errors', async () => {
  const { error } = await sandbox.runCode('y')
  assert.equal(error.name, 'NameError')
  assert.match(error.traceback, /NameError: name 'y' is not defined/)
})

test('manages contexts', async () => {
  const context = await sandbox.createCodeContext({ cwd: '/root' })
  const contexts = await sandbox.listCodeContexts()
  assert.equal(contexts.at(-1).id, context.id)
  await sandbox.runCode('z = 1', { context })
  await sandbox.restartCodeContext(context)
  assert.equal((await sandbox.runCode('z', { context })).error.name, 'NameError')
  await sandbox.removeCodeContext(context)
  await assert.rejects(sandbox.runCode('1', { context }), /not found/)
})

test('interrupts what a timeout leaves behind', async () => {
  await assert.rejects(sandbox.runCode('import time; time.sleep(300)', { timeoutMs: 2000 }))
  assert.equal((await sandbox.runCode('1 + 1')).text, '2')
})
