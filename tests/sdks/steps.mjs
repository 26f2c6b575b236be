// Every step of the JavaScript guide with the released runpod-sdk; the last line printed is what each step gave.

import runpodSdk from 'runpod-sdk'

const { RUNPOD_API_KEY, BASE_URL } = process.env
const runpod = runpodSdk(RUNPOD_API_KEY, { baseUrl: BASE_URL })
const echo = runpod.endpoint('echo')
const words = runpod.endpoint('words')
const failing = runpod.endpoint('failing')

const hello = { input: { prompt: 'Hello, World!' } }
const slow = { input: { prompt: 'Hello, World!', pause: 0.6 } }
const endless = { input: { prompt: 'never', pause: 600 } }
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms))

async function poll(endpoint, id) {
  while (true) {
    const status = await endpoint.status(id)
    if (status.status === 'COMPLETED' || status.status === 'FAILED') return status
    await sleep(200)
  }
}

async function untilRunning(id) {
  while ((await words.status(id)).status === 'IN_QUEUE') await sleep(20)
}

const steps = {
  async runSync() {
    return await echo.runSync(hello)
  },
  async run() {
    return await echo.run(hello)
  },
  async poll() {
    const { id } = await words.run(hello)
    return await poll(words, id)
  },
  async 'poll a job that fails'() {
    const { id } = await failing.run({ input: { message: 'no luck' } })
    return await poll(failing, id)
  },
  async stream() {
    const result = await words.run(slow)
    const updates = []
    for await (const update of words.stream(result.id)) updates.push(update)
    return { id: result.id, updates, status: await words.status(result.id) }
  },
  async 'stream a job that fails'() {
    const { id } = await failing.run({ input: { message: 'no luck' } })
    const updates = []
    for await (const update of failing.stream(id)) updates.push(update)
    return updates
  },
  async status() {
    const { id } = await words.run(endless)
    await untilRunning(id)
    this.running = id
    return await words.status(id)
  },
  async health() {
    this.queued = [(await words.run(hello)).id, (await words.run(hello)).id]
    return await words.health()
  },
  async purgeQueue() {
    const purgeResult = await words.purgeQueue()
    const purged = await words.status(this.queued[0])
    return { purgeResult, purged, running: (await words.status(this.running)).status }
  },
  async cancel() {
    const cancel = await words.cancel(this.running)
    const updates = []
    for await (const update of words.stream(this.running)) updates.push(update)
    return { cancel, status: await words.status(this.running), updates }
  },
  async timeout() {
    const result = await words.run(slow, 1000)
    return { result, status: await poll(words, result.id) }
  },
  async policy() {
    const result = await words.run({ ...hello, policy: { executionTimeout: 5000 } })
    return { result, status: await poll(words, result.id) }
  },
  async 'policy that ends a job'() {
    const policy = { executionTimeout: 300, ttl: 60000, lowPriority: true }
    return await words.runSync({ ...endless, policy })
  },
  async 'runSync holds'() {
    return await words.runSync(slow)
  },
  async 'runSync gives up'() {
    const result = await words.runSync(endless, 200)
    return { result, cancel: await words.cancel(result.id) }
  },
  async 'a wrong key'() {
    return await runpodSdk('another', { baseUrl: BASE_URL }).endpoint('echo').run(hello)
  },
  async 'an unknown job'() {
    return await echo.status('no-such-job')
  },
}

const found = {}
for (const name of Object.keys(steps)) {
  try {
    found[name] = await steps[name]()
  } catch (error) {
    found[name] = { thrown: error.message, status: error.response?.status, data: error.response?.data }
  }
}
console.log(JSON.stringify(found))
