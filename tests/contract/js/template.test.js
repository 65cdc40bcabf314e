// Template() of the official JavaScript SDK: built here, with files, and used.
import assert from 'node:assert/strict'
import { mkdtempSync, mkdirSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, test } from 'node:test'

import { E2B, Sandbox, Template, waitForTimeout } from 'e2b'

const name = `js-${Date.now().toString(36)}`
const size = { cpuCount: 1, memoryMB: 512 }
const context = mkdtempSync(join(tmpdir(), 'template-'))

after(async () => {
  rmSync(context, { recursive: true })
  const answer = await fetch(`${process.env.E2B_API_URL}/templates/${name}`, {
    method: 'DELETE',
    headers: { 'X-API-Key': process.env.E2B_API_KEY },
  })
  assert.equal(answer.status, 204)
})

test('a template with files, environment and a start command', async () => {
  mkdirSync(join(context, 'folder'))
  writeFileSync(join(context, 'folder', 'test.txt'), 'This is a test file.')
  symlinkSync('test.txt', join(context, 'folder', 'link'))
  const lines = []
  const template = Template({ fileContextPath: context })
    .fromBaseImage()
    .copy('folder/*', 'folder', { forceUpload: true })
    .runCmd(`cat folder/link # not from the cache: ${name}`)
    .setEnvs({ FROM_JS: 'yes' })
    .setWorkdir('/app')
    .setStartCmd('touch /tmp/started', waitForTimeout(1000))
  await Template.build(template, name, {
    ...size,
    onBuildLogs: (entry) => lines.push(entry.message),
  })
  assert.ok(lines.some((line) => line.includes('[stdout]: This is a test file.')))
  const sandbox = await Sandbox.create(name)
  const { stdout } = await sandbox.commands.run('pwd; echo $FROM_JS; ls /tmp/started')
  await sandbox.kill()
  assert.equal(stdout, '/app\nyes\n/tmp/started\n')
})

test('a failing step is an error that says why', async () => {
  const template = Template().fromTemplate(name).runCmd('exit 7')
  await assert.rejects(Template.build(template, `${name}:bad`, size), /exit status 7/)
})

test('tags and existence', async () => {
  assert.equal(await Template.exists(name), true)
  assert.equal(await Template.exists(`${name}-not`), false)
  const client = new E2B({ apiKey: process.env.E2B_API_KEY, apiUrl: process.env.E2B_API_URL })
  assert.equal(await client.Template.exists(name), true)
  const { tags } = await Template.assignTags(name, ['stable'])
  assert.deepEqual(tags, ['stable'])
  assert.deepEqual(
    (await Template.getTags(name)).map(({ tag }) => tag).sort(),
    ['default', 'stable']
  )
  await Template.removeTags(name, 'stable')
})
