// The released `runpod-sdk` package, used as its README shows, driven by JSON lines as driver.py is.
//   node peer.mjs FOLDER_WITH_NODE_MODULES
import { readFileSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { createInterface } from 'node:readline'
import { pathToFileURL } from 'node:url'

const PAUSE = 5000 // ms between two looks: the documented loop
const PATIENCE = 60 // s

const print = (document) => process.stdout.write(JSON.stringify(document) + '\n')
console.log = () => {} // runSync prints every look
const home = path.join(process.argv[2], 'node_modules/runpod-sdk/dist/src/index.js')
const runpodSdk = (await import(pathToFileURL(home).href)).default

const now = () => Number(process.hrtime.bigint()) / 1e9
const sleep = (seconds) => new Promise((resolve) => setTimeout(resolve, seconds * 1000))
const said = (error) => `${error?.name ?? 'Error'}: ${error?.message ?? error}`.slice(0, 400)
const within = (patience, promise) =>
  Promise.race([promise, sleep(patience).then(() => Promise.reject(new Error('patience')))])

let endpoint

async function stream(input, cancelAfter, patience) {
  const seen = { came: [], tokens: [], called: now(), error: null }
  const all = async () => {
    const { id } = await endpoint.run({ input })
    const cancelling =
      cancelAfter == null
        ? null
        : sleep(cancelAfter).then(() => {
            seen.cancelled = now()
            return endpoint.cancel(id)
          })
    for await (const chunk of endpoint.stream(id)) {
      seen.came.push(now())
      seen.tokens.push(chunk.output)
    }
    await cancelling
  }
  try {
    await within(patience, all())
  } catch (error) {
    seen.error = said(error)
  }
  seen.ended = now()
  return seen
}

async function output(input, how) {
  if (how === 'runsync') return (await endpoint.runSync({ input })).output
  const { id } = await endpoint.run({ input })
  for (;;) {
    const job = await endpoint.status(id)
    if (job.status === 'COMPLETED') return job.output
    if (job.status === 'FAILED') throw new Error('FAILED')
    await sleep(PAUSE / 1000)
  }
}

function mostMemory() {
  return Number(/VmHWM:\s*(\d+)/.exec(readFileSync('/proc/self/status', 'utf8'))[1]) / 1024
}

function memorySoFar() {
  try {
    writeFileSync('/proc/self/clear_refs', '5')
    return mostMemory()
  } catch {
    return NaN
  }
}

const orders = {
  open({ url }) {
    endpoint = runpodSdk('key', { baseUrl: `${url}/v2` }).endpoint('ep')
    return {}
  },
  close: () => ({}),
  async greet() {
    await endpoint.health()
    return {}
  },
  async streams({ inputs, cancel_after, patience = PATIENCE }) {
    return { streams: await Promise.all(inputs.map((input) => stream(input, cancel_after, patience))) }
  },
  async result({ input, how, patience = PATIENCE }) {
    const seen = { called: now(), error: null, output: null }
    try {
      seen.output = await within(patience, output(input, how.split(' ')[0]))
    } catch (error) {
      seen.error = said(error)
    }
    seen.ended = now()
    return seen
  },
  async bulk({ count, input, how, patience = PATIENCE }) {
    const inputs = Array.from({ length: count }, (_, number) => ({ ...input, tag: `job ${number}` }))
    const memory = memorySoFar()
    const before = process.cpuUsage()
    const called = now()
    const caught = (error) => ({ error: said(error) })
    const all = Promise.all(inputs.map((one) => output(one, how).then((value) => ({ value }), caught)))
    const outcomes = await within(patience, all).catch((error) => inputs.map(() => caught(error)))
    const ended = now()
    const { user, system } = process.cpuUsage(before)
    const wrong = outcomes
      .filter(({ value, error }, at) => error !== undefined || value !== inputs[at].tag)
      .map(({ value, error }) => error ?? `wrong: ${JSON.stringify(value)}`)
    const counts = {}
    for (const why of wrong.map((one) => one.replace(/\d[\d.]*/g, '#'))) counts[why] = (counts[why] ?? 0) + 1
    const errors = Object.entries(counts).sort((a, b) => b[1] - a[1])
    const cpu = (user + system) / 1e6
    return { called, ended, cpu, memory: memory ? mostMemory() - memory : null, lost: wrong.length, errors }
  },
}

for await (const line of createInterface({ input: process.stdin })) {
  const order = JSON.parse(line)
  print(await orders[order.do](order))
}
process.exit(0)
