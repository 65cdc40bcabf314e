// Debug a program: run it, let a model analyse what goes wrong, run its fix, until it works.
//
//   npm install @e2b/code-interpreter openai
//   node examples/debug_code.mjs broken.js
//
// LLM_BASE_URL, LLM_API_KEY and LLM_MODEL say which model. Prints the program that works.
import { readFile } from 'node:fs/promises'

import { Sandbox } from '@e2b/code-interpreter'
import OpenAI from 'openai'

const ROUNDS = 5
const INSTRUCTIONS =
  'You debug JavaScript programs. Say in a sentence what is wrong, then give the whole fixed program ' +
  'in one code block. Change nothing else.'

const model = new OpenAI({ apiKey: process.env.LLM_API_KEY, baseURL: process.env.LLM_BASE_URL })
const messages = [{ role: 'system', content: INSTRUCTIONS }]

async function fixed(code, error) {
  const content = `This program:\n\`\`\`javascript\n${code}\`\`\`\nfails:\n${error.name}: ${error.value}\n${error.traceback}`
  messages.push({ role: 'user', content })
  const answer = await model.chat.completions.create({ model: process.env.LLM_MODEL, messages })
  const said = answer.choices[0].message
  messages.push(said)
  return said.content.match(/```\w*\n([\s\S]*?)```/)?.[1] ?? said.content
}

async function debugCode(code) {
  const sandbox = await Sandbox.create()
  try {
    for (let round = 0; round < ROUNDS; round++) {
      const { error } = await sandbox.runCode(code, { language: 'javascript' })
      if (!error) return code
      console.error(`${error.name}: ${error.value}`)
      code = await fixed(code, error)
    }
    throw new Error('it still fails')
  } finally {
    await sandbox.kill()
  }
}

process.stdout.write(await debugCode(await readFile(process.argv[2], 'utf8')))
