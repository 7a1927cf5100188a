// OpenWhisk's official client for JavaScript, as its users use it. usage: node client.js SCENARIO
// The server and its key are in __OW_API_HOST and __OW_API_KEY. What differs from OpenWhisk fails an assertion.
'use strict'

const assert = require('node:assert/strict')
const openwhisk = require('openwhisk')

const ow = openwhisk()
const ECHO = 'function main(args) { console.log("called"); return args }'
const PYTHON = 'def main(args):\n    print("called")\n    return args'
const refused = async (promise, status) => {
  const error = await promise.then(() => assert.fail('it was not refused'), error => error)
  assert.equal(error.statusCode, status, error.message)
  return error
}
const names = list => list.map(entity => entity.name)

async function until (look) {
  for (let n = 0; n < 200; n++) {
    const found = await look().catch(error => { if (error.statusCode !== 404) throw error })
    if (found) return found
    await new Promise(resolve => setTimeout(resolve, 50))
  }
  assert.fail('waited in vain')
}

const scenarios = {
  async actions () {
    const name = 'echo'
    const made = await ow.actions.create({ name, action: ECHO, kind: 'nodejs:default', params: { a: 1 }, annotations: { note: 'x' } })
    assert.equal(made.version, '0.0.1')
    await refused(ow.actions.create({ name, action: ECHO }), 409)
    const updated = await ow.actions.update({ name, action: PYTHON, kind: 'python:3', params: { a: 2 } })
    assert.equal(updated.version, '0.0.2')
    assert.equal((await ow.actions.get(name)).exec.code, PYTHON)
    assert.ok(names(await ow.actions.list()).includes(name))
    const called = await ow.actions.invoke({ name, blocking: true, params: { b: 3 } })
    assert.deepEqual(called.response.result, { a: 2, b: 3 })
    assert.deepEqual(await ow.actions.invoke({ name, blocking: true, result: true }), { a: 2 })
    const { activationId } = await ow.actions.invoke({ name, params: { b: 4 } })
    assert.match(activationId, /^[0-9a-f]{32}$/)
    await until(() => ow.activations.get(activationId))
    await ow.actions.delete(name)
    await refused(ow.actions.get(name), 404)
    await refused(ow.actions.invoke({ name, blocking: true }), 404)
  },

  async nodejs () {
    await ow.actions.create({ name: 'js', action: 'const main = args => ({ greeting: "hello " + args.name })' })
    assert.deepEqual(await ow.actions.invoke({ name: 'js', blocking: true, result: true, params: { name: 'you' } }), { greeting: 'hello you' })
  },

  async failures () {
    await ow.actions.create({ name: 'fails', action: 'def main(args):\n    return {"error": "no"}', kind: 'python:3' })
    const error = await refused(ow.actions.invoke({ name: 'fails', blocking: true }), 502)
    assert.equal(error.error.response.result.error, 'no')
    assert.match(error.error.activationId, /^[0-9a-f]{32}$/)
    const none = openwhisk({ api_key: 'nobody:nothing' })
    await refused(none.actions.list(), 401)
    await refused(ow.actions.create({ name: 'x y/', action: ECHO }), 404)
    await refused(ow.actions.create({ name: 'bad', action: 'x', kind: 'cobol:68' }), 400)
  },

  async packages () {
    await ow.packages.update({ name: 'pack', package: { publish: true, parameters: [{ key: 'p', value: 1 }] } })
    await ow.actions.update({ name: 'pack/echo', action: PYTHON, kind: 'python:3' })
    assert.deepEqual(names((await ow.packages.get('pack')).actions), ['echo'])
    assert.deepEqual(await ow.actions.invoke({ name: 'pack/echo', blocking: true, result: true }), { p: 1 })
    const [namespace] = await ow.namespaces.list()
    await ow.packages.update({ name: 'bound', package: { binding: { namespace, name: 'pack' }, parameters: [{ key: 'q', value: 2 }] } })
    assert.deepEqual(await ow.actions.invoke({ name: 'bound/echo', blocking: true, result: true }), { p: 1, q: 2 })
    assert.deepEqual(await ow.actions.invoke({ name: '/whisk.system/utils/sort', blocking: true, result: true, params: { lines: ['b', 'a'] } }), { lines: ['a', 'b'], length: 2 })
    assert.ok(names(await ow.packages.list()).includes('bound'))
    await refused(ow.packages.delete('pack'), 409)
    await ow.actions.delete('pack/echo')
    await ow.packages.delete('bound')
    await ow.packages.delete('pack')
  },

  async triggers () {
    await ow.actions.update({ name: 'caught', action: PYTHON, kind: 'python:3' })
    await ow.triggers.create({ name: 'happened', trigger: { parameters: [{ key: 'a', value: 1 }] } })
    await ow.rules.create({ name: 'when', trigger: 'happened', action: 'caught' })
    assert.ok(names(await ow.triggers.list()).includes('happened'))
    assert.ok(names(await ow.rules.list()).includes('when'))
    const { activationId } = await ow.triggers.invoke({ name: 'happened', params: { b: 2 } })
    const fired = await until(() => ow.activations.get(activationId))
    const line = JSON.parse(fired.logs[0])
    assert.ok(line.success)
    const ran = await until(() => ow.activations.get(line.activationId))
    assert.equal(ran.response.result.a, 1)
    assert.equal(ran.response.result.b, 2)
    await ow.rules.disable({ name: 'when' })
    assert.equal((await ow.rules.get('when')).status, 'inactive')
    await ow.rules.enable({ name: 'when' })
    assert.equal((await ow.rules.get('when')).status, 'active')
    await ow.rules.delete('when')
    await ow.triggers.delete('happened')
    await refused(ow.triggers.get('happened'), 404)
  },

  async feeds () {
    const trigger = 'daily'
    const feed = { name: '/whisk.system/alarms/alarm', trigger }
    await ow.triggers.create({ name: trigger })
    await ow.feeds.create({ ...feed, params: { cron: '0 3 * * *', trigger_payload: { a: 1 } } })
    const read = await ow.feeds.get(feed)
    assert.equal(read.response.result.config.cron, '0 3 * * *')
    assert.equal(read.response.result.status.active, true)
    await ow.feeds.update({ ...feed, params: { cron: '0 4 * * *' } })
    assert.equal((await ow.feeds.get(feed)).response.result.config.cron, '0 4 * * *')
    await ow.feeds.delete(feed)
    await refused(ow.feeds.create({ ...feed, params: { cron: 'never' } }), 502)
    await ow.triggers.delete(trigger)
  },

  async sequences () {
    await ow.actions.update({ name: 'one', action: 'def main(a):\n    return {"n": a["n"] + 1}', kind: 'python:3' })
    const [namespace] = await ow.namespaces.list()
    const name = `/${namespace}/one`
    await ow.actions.create({ name: 'twice', sequence: [name, name] })
    const done = await ow.actions.invoke({ name: 'twice', blocking: true, params: { n: 1 } })
    assert.deepEqual(done.response.result, { n: 3 })
    assert.equal(done.logs.length, 2)
    assert.equal((await until(() => ow.activations.get(done.logs[0]))).cause, done.activationId)
  },

  async activations () {
    await ow.actions.update({ name: 'logs', action: PYTHON, kind: 'python:3' })
    const { activationId } = await ow.actions.invoke({ name: 'logs', blocking: true, params: { a: 1 } })
    assert.ok((await ow.activations.list({ limit: 5 })).some(a => a.activationId === activationId))
    assert.match((await ow.activations.logs(activationId)).logs[0], / stdout: called$/)
    assert.deepEqual((await ow.activations.result(activationId)).result, { a: 1 })
    await refused(ow.activations.get('0'.repeat(32)), 404)
  },

  async namespaces () {
    const [namespace] = await ow.namespaces.list()
    const all = await ow.namespaces.get(namespace)
    for (const collection of ['actions', 'packages', 'triggers', 'rules']) assert.ok(Array.isArray(all[collection]))
    const other = await refused(ow.actions.list({ namespace: 'others' }), 403)
    assert.match(other.message, /not authorized/)
    await refused(ow.routes.list(), 404)
  }
}

scenarios[process.argv[2]]().catch(error => {
  console.error(error)
  process.exitCode = 1
})
