// Loads a Node.js action and answers its calls. Its parent (child.py) writes one JSON line per call to stdin, the first
// with the code; answers go to descriptor 3, a line each: a digit, which says how it went (protocol.py), and JSON.
// What the action prints goes to stdout and stderr. CommonJS, no dependencies, Node.js 18 or newer.
'use strict';

const fs = require('fs');
const net = require('net');
const path = require('path');
const { createRequire } = require('module');
const { pathToFileURL } = require('url');
const vm = require('vm');

const SUCCESS = 0, RAISED = 2, BAD_RESULT = 6, THREW = 7;
const NAME = /^[\p{ID_Start}$_][\p{ID_Continue}$]*(\.[\p{ID_Start}$_][\p{ID_Continue}$]*)*$/u;
const DEPTH_MAX = 64;

class Refused extends Error {}

// loading

async function load({ name, main, source, directory }) {
  if (!NAME.test(main)) throw new Refused('Name of main function is not valid.');
  const found = directory === null ? fromSource(name, source, main) : await fromDirectory(directory, main);
  if (typeof found !== 'function') throw new Refused(`Action entrypoint '${main}' is not a function.`);
  return found;
}

// Source text: `main` is what the text defines by that name, or exports.
function fromSource(name, source, main) {
  const module = { exports: {} };
  const room = path.join(process.cwd(), 'index.js');
  const root = main.split('.')[0];
  const text = `${source}\n;return typeof ${root} === 'undefined' ? undefined : ${main};`;
  const parameters = ['require', 'module', 'exports', '__filename', '__dirname'];
  const options = { filename: name, importModuleDynamically: vm.constants?.USE_MAIN_CONTEXT_DEFAULT_LOADER };
  vm.compileFunction(source, parameters, options); // what is wrong with it is said of the text alone
  const run = vm.compileFunction(text, parameters, options);
  const defined = run.call(module.exports, createRequire(room), module, module.exports, room, path.dirname(room));
  return defined ?? member(module.exports, main);
}

// An archive: the package at its root, or `file.function` of another file. An ES module's default export counts, too.
async function fromDirectory(directory, main) {
  process.chdir(directory);
  const [first, ...rest] = main.split('.');
  const [place, wanted] = rest.length ? [path.join(directory, first), rest.join('.')] : [directory, main];
  if (!rest.length && !['package.json', 'index.js'].some((file) => fs.existsSync(file))) {
    throw new Refused('Zipped actions must contain either package.json or index.js at the root.');
  }
  const require = createRequire(path.join(directory, 'index.js'));
  const file = require.resolve(place);
  const loaded = isModule(file, directory) ? await import(pathToFileURL(file)) : require(file);
  return member(loaded, wanted) ?? (loaded?.default && member(loaded.default, wanted));
}

function isModule(file, directory) {
  if (/\.[cm]js$/.test(file)) return file.endsWith('.mjs');
  const description = path.join(directory, 'package.json');
  return fs.existsSync(description) && JSON.parse(fs.readFileSync(description, 'utf8')).type === 'module';
}

function member(holder, main) {
  let receiver, value = holder;
  for (const name of main.split('.')) [receiver, value] = [value, value?.[name]];
  return typeof value === 'function' && receiver !== holder ? value.bind(receiver) : value;
}

// calling

async function call(action, { value }) {
  let pending;
  try {
    pending = action(value);
  } catch (error) {
    console.error(trimmed(error));
    return [THREW, { error: `An error has occurred: ${shown(error)}` }];
  }
  try {
    return result(await pending);
  } catch (error) {
    return [RAISED, { error: error ? plain(error) : {} }];
  }
}

function result(given) {
  if (given === undefined) return [SUCCESS, {}];
  if (typeof given === 'object') return [SUCCESS, given];
  console.error(`Result must be of type object but has type "${typeof given}":`, given);
  return [BAD_RESULT, { error: 'The action did not return a dictionary.' }];
}

function line([outcome, value]) {
  let text;
  try {
    text = String(JSON.stringify(value));
  } catch (error) {
    console.error(trimmed(error));
    return `${BAD_RESULT}{"error":"Internal error."}\n`;
  }
  if (text[0] === '{' || text[0] === '[') return `${outcome}${text}\n`;
  const error = `The action did not produce a valid JSON or JSON Array response: ${text.slice(0, 1024)}`;
  return `${BAD_RESULT}${JSON.stringify({ error })}\n`;
}

// errors

// What a promise was rejected with, as plain JSON: of an error also what is not enumerable.
function plain(value, above = []) {
  if (typeof value === 'bigint' || typeof value === 'symbol') return String(value);
  if (typeof value === 'function') return `[Function: ${value.name || 'anonymous'}]`;
  if (typeof value !== 'object' || value === null) return value;
  if (above.includes(value)) return '[Circular]';
  if (above.length >= DEPTH_MAX) return '[Deep]';
  if (Buffer.isBuffer(value)) return '[object Buffer]';
  if (typeof value.toJSON === 'function' && !(value instanceof Error)) return plain(value.toJSON(), [...above, value]);
  const below = (part) => plain(part, [...above, value]);
  if (Array.isArray(value)) return value.map(below);
  const entries = Object.entries(value).filter(([, part]) => typeof part !== 'function');
  if (value instanceof Error) {
    const hidden = ['name', 'message', 'code', 'cause'].filter((key) => value[key] !== undefined);
    entries.unshift(...hidden.map((key) => [key, value[key]]), ['stack', trimmed(value)]);
  }
  return Object.fromEntries(entries.map(([key, part]) => [key, below(part)]));
}

// An error's stack down to the first frame that is ours.
function trimmed(error) {
  if (!(error instanceof Error) || typeof error.stack !== 'string') return error;
  const frames = error.stack.split('\n').filter((frame) => !/\(?node:(internal|vm)\b/.test(frame));
  const ours = frames.findIndex((frame) => frame.includes(__filename));
  return frames.slice(0, ours < 0 ? undefined : ours).join('\n');
}

function shown(error) {
  try {
    return String(error);
  } catch {
    return 'an error that has no text';
  }
}

// the conversation

function say(text) {
  for (let rest = Buffer.from(text); rest.length; ) rest = rest.subarray(fs.writeSync(3, rest));
}

async function begin(document) {
  try {
    const action = await load(document);
    say('{"ok":true}\n');
    return action;
  } catch (error) {
    const text = error instanceof Refused ? error.message : trimmed(error);
    console.error('Error during initialization:', text);
    const final = error instanceof Refused || error instanceof SyntaxError;
    say(`${JSON.stringify({ ok: false, error: `Initialization has failed due to: ${shown(text)}`, final })}\n`);
    return process.reallyExit(1);
  }
}

// What belongs to this call alone: OpenWhisk's names for it, and the trace.
function setEnvironment(given) {
  delete process.env.__OW_API_KEY;
  delete process.env.TRACEPARENT;
  for (const [key, value] of Object.entries(given)) {
    if (key === 'traceparent') process.env.TRACEPARENT = value;
    else if (typeof value === 'string' && key !== 'value') process.env[`__OW_${key.toUpperCase()}`] = value;
  }
}

// Else what is printed while a pipe is full stays in memory: it would be lost at an exit, or come with the next call.
for (const stream of [process.stdout, process.stderr]) stream._handle?.setBlocking?.(true);

let action = null;

async function hear(text) {
  const message = JSON.parse(text);
  if (action === null) {
    action = await begin(message);
  } else {
    setEnvironment(message);
    say(line(await call(action, message)));
  }
}

const pieces = [];
const input = new net.Socket({ fd: 0, readable: true, writable: false });
input.on('data', (data) => {
  pieces.push(data);
  if (data[data.length - 1] !== 10) return;
  const text = Buffer.concat(pieces.splice(0)).toString();
  hear(text);
});
input.on('end', () => process.reallyExit(0));
