// A composition: what `compose` compiles and `deploy` puts on the server.
'use strict'

const composer = require('openwhisk-composer')

module.exports = composer.sequence(
  composer.let({ tries: 0 },
    composer.if(
      composer.action('even', { action: function main (args) { return { value: args.n % 2 === 0 } } }),
      composer.action('halve', { action: function main () { return { n: 'even' } } }),
      composer.action('triple', { action: function main () { return { n: 'odd' } } }))),
  composer.function(args => ({ outcome: args.n })))
