// OpenFeature's OFREP providers for JavaScript, for servers and for the web, against a
// server that the test has filled.

const assert = require('node:assert/strict');
const { OFREPProvider } = require('@openfeature/ofrep-provider');
const { OpenFeature } = require('@openfeature/server-sdk');
const { OFREPWebProvider } = require('@openfeature/ofrep-web-provider');
const web = require('@openfeature/web-sdk');

const url = process.env.OFREP_URL;
const token = process.env.OFREP_TOKEN;
const split = process.env.OFREP_SPLIT === 'true';
const bearer = [['Authorization', `Bearer ${token}`]];
const acme = { targetingKey: 't-acme', environment: 'production' };
const flags = [
  ['always', true, 'STATIC'],
  ['never', false, 'DISABLED'],
  ['pro-only', true, 'TARGETING_MATCH'],
  ['nobody', false, 'DEFAULT'],
  ['staging', false, 'DEFAULT'],
  ['some', split, 'SPLIT'],
  ['live', true, 'STATIC'],
];

async function patch(key, change) {
  const response = await fetch(`${url}/flags/${key}`, {
    method: 'PATCH',
    headers: [...bearer, ['Content-Type', 'application/json']],
    body: JSON.stringify(change),
  });
  assert.equal(response.status, 200);
}

async function client(domain, headers) {
  await OpenFeature.setProviderAndWait(domain, new OFREPProvider({ baseUrl: url, headers }));
  return OpenFeature.getClient(domain);
}

function agree(details, value, reason) {
  assert.equal(details.value, value, JSON.stringify(details));
  assert.equal(details.reason, reason, JSON.stringify(details));
  assert.equal(details.variant, value ? 'on' : 'off');
  assert.equal(typeof details.flagMetadata.revision, 'number');
}

async function forServers() {
  const asked = await client('right', bearer);
  for (const [key, value, reason] of flags) {
    // The default is the other value.
    agree(await asked.getBooleanDetails(key, !value, acme), value, reason);
  }
  const error = async (who, key, context) => {
    const details = await who.getBooleanDetails(key, true, context);
    assert.equal(details.value, true);
    return details.errorCode;
  };
  assert.equal(await error(asked, 'no-such-flag', acme), 'FLAG_NOT_FOUND');
  assert.equal(await error(asked, 'pro-only', {}), 'TARGETING_KEY_MISSING');
  assert.equal(await error(asked, 'pro-only', { ...acme, plan: 7 }), 'INVALID_CONTEXT');
  // Off stays off for a context that lacks what other flags need.
  for (const context of [{}, { ...acme, plan: 7 }]) {
    assert.equal(await asked.getBooleanValue('never', true, context), false);
  }
  const wrong = await client('wrong', [['X-API-Key', 'wrong']]);
  assert.equal(await error(wrong, 'always', acme), 'GENERAL');
  assert.equal((await asked.getStringDetails('always', 'text', acme)).errorCode, 'TYPE_MISMATCH');
}

async function forTheWeb() {
  await web.OpenFeature.setContext(acme);
  const provider = new OFREPWebProvider({
    baseUrl: url,
    headers: bearer,
    pollInterval: 50,
    cacheMode: 'disabled',
  });
  await web.OpenFeature.setProviderAndWait(provider);
  const asked = web.OpenFeature.getClient();
  for (const [key, value, reason] of flags) {
    agree(asked.getBooleanDetails(key, !value), value, reason);
  }
  assert.equal(asked.getBooleanDetails('no-such-flag', true).errorCode, 'FLAG_NOT_FOUND');
  const changed = new Promise((resolve) =>
    asked.addHandler(web.ProviderEvents.ConfigurationChanged, ({ flagsChanged }) => {
      if (flagsChanged.includes('never')) resolve();
    }),
  );
  await patch('never', { state: 'on' });
  await changed;
  assert.equal(asked.getBooleanValue('never', false), true);

  const wrong = new OFREPWebProvider({ baseUrl: url, headers: [], cacheMode: 'disabled' });
  await assert.rejects(web.OpenFeature.setProviderAndWait('wrong', wrong));
}

async function seesAChange() {
  const asked = await client('change', bearer);
  assert.equal(await asked.getBooleanValue('never', false, acme), true);
  await patch('never', { state: 'off' });
  assert.equal(await asked.getBooleanValue('never', true, acme), false);
}

forServers()
  .then(forTheWeb)
  .then(seesAChange)
  .then(() => {
    console.log('all is well');
    process.exit(0);
  })
  .catch((error) => {
    console.error(error);
    process.exit(1);
  });
