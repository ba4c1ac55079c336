// Drives the life of images through the vendor's clients for JavaScript, and prints a line
// of JSON for each step: what the client made of the answer, or of the refusal. What is
// right is for the caller to say.
'use strict';

const { randomUUID } = require('crypto');
const { setTimeout: pause } = require('timers/promises');
const { $OpenApiUtil } = require('@alicloud/openapi-core');
const ecs = require('@alicloud/ecs20140526');
const { RPCClient } = require('@alicloud/pop-core');

const { HOST, REGION, BUCKET, KEY, SECRET, SESSION, SESSION_SECRET, SESSION_TOKEN } = process.env;
const everyState = 'Waiting,Creating,Available,CreateFailed,UnAvailable,Deprecated';

// generated is the client of the second generation: the header signature, and a model for
// each request and answer. It returns call(action, parameters), where parameters are in the
// spelling of the models.
function generated(accessKeyId, accessKeySecret, securityToken) {
  const client = new ecs.default(new $OpenApiUtil.Config({
    accessKeyId, accessKeySecret, securityToken, endpoint: HOST, protocol: 'HTTP', regionId: REGION,
  }));
  return async (action, parameters) => {
    const request = new ecs[`${action}Request`](parameters);
    const answer = await client[action[0].toLowerCase() + action.slice(1)](request);
    return answer.body.toMap();
  };
}

// generic is the client of the first generation, which knows nothing of actions: the
// signature over all parameters, in the query or in a form.
function generic(method) {
  return (accessKeyId, accessKeySecret, securityToken) => {
    const client = new RPCClient({
      accessKeyId, accessKeySecret, securityToken, endpoint: `http://${HOST}`, apiVersion: '2014-05-26',
      opts: { method, timeout: 10000 },
    });
    return (action, parameters) => client.request(action, wireNames(parameters));
  };
}

// wireNames turns the spelling of the models into that of the wire.
function wireNames(value) {
  if (Array.isArray(value)) {
    return value.map(wireNames);
  }
  if (value === null || typeof value !== 'object') {
    return value;
  }
  return Object.fromEntries(Object.entries(value).map(([name, v]) => [name[0].toUpperCase() + name.slice(1), wireNames(v)]));
}

// life goes through all steps. Those of several clients do not disturb each other.
async function life(name, connect) {
  const call = connect(KEY, SECRET);
  const show = (step, result) => console.log(JSON.stringify({ client: name, step, ...result }));

  async function step(title, attempt) {
    try {
      const answer = await attempt();
      show(title, { answer });
      return answer;
    } catch (e) {
      if (!e.code) {
        throw e;
      }
      show(title, { code: e.code, status: e.statusCode || (e.entry && e.entry.response.statusCode), message: e.message });
      return {};
    }
  }

  // until asks again until the answer, or the code of the refusal, is as it should be.
  async function until(title, attempt, is) {
    for (const end = Date.now() + 60000; Date.now() < end; await pause(20)) {
      let answer = {};
      let code = '';
      try {
        answer = await attempt();
      } catch (e) {
        code = e.code;
      }
      if (is(answer, code)) {
        show(title, code ? { code } : { answer });
        return;
      }
    }
    throw new Error(`${name}: it took too long: ${title}`);
  }

  const regionId = REGION;
  const disk = (OSSObject, more) => ({ OSSBucket: BUCKET, OSSObject, ...more });
  const request = (title, ...diskDeviceMapping) => ({ regionId, imageName: `${name}-${title}`, diskDeviceMapping });
  const images = (imageId) => call('DescribeImages', { regionId, imageId, status: everyState });

  await step('regions', () => call('DescribeRegions', { acceptLanguage: 'en-US' }));

  const kept = {
    ...request('映像かな', disk('dir/system disk+1.raw', { format: 'RAW', diskImageSize: 40 }), disk('data.qcow2')),
    OSType: 'linux', platform: 'Ubuntu', description: "sp ace*~+&=%/漢!'()", clientToken: randomUUID(),
    tag: [{ key: 'env', value: 'prod' }],
  };
  await step('dry run', () => call('ImportImage', { ...kept, dryRun: true }));
  const made = await step('import', () => call('ImportImage', kept));
  await until('available', () => images(made.ImageId), (a) => a.Images && a.Images.Image[0].Status === 'Available');
  await step('again with the token', () => call('ImportImage', kept));
  await step('another with the token', () => call('ImportImage', { ...kept, description: 'another' }));
  await step('duplicate', () => call('ImportImage', { ...kept, clientToken: undefined }));
  await step('tasks', () => call('DescribeTasks', { regionId, taskIds: made.TaskId, pageSize: 5 }));
  await step('task', () => call('DescribeTaskAttribute', { regionId, taskId: made.TaskId }));
  await step('no such image', () => images('m-00000000000000000000'));

  await step('bad name', () => call('ImportImage', request('a/b', disk('data.qcow2'))));
  await step('bad size', () => call('ImportImage', request('size', disk('data.qcow2', { diskImageSize: 4 }))));
  await step('no bucket', () => call('ImportImage', request('bucket', { OSSObject: 'data.qcow2' })));
  await step('no object', () => call('ImportImage', request('object', disk('none.raw'))));
  await step('bad region', () => call('ImportImage', { ...request('region', disk('data.qcow2')), regionId: 'cn-nowhere' }));

  const long = await step('long import', () => call('ImportImage', request('long', disk('endless.raw'))));
  await until('under way', () => call('DescribeTaskAttribute', { regionId, taskId: long.TaskId }), (a) => a.TaskStatus === 'Processing');
  await step('delete under way', () => call('DeleteImage', { regionId, imageId: long.ImageId, force: true }));
  await step('cancel', () => call('CancelTask', { regionId, taskId: long.TaskId }));
  await step('cancel twice', () => call('CancelTask', { regionId, taskId: long.TaskId }));
  await until('canceled', () => call('DescribeTaskAttribute', { regionId, taskId: long.TaskId }), (a) => a.TaskStatus === 'Deleted');

  const short = await step('name is free', () => call('ImportImage', request('long', disk('data.qcow2'))));
  await until('available, too', () => images(short.ImageId), (a) => a.Images && a.Images.Image[0].Status === 'Available');
  await step('delete', () => call('DeleteImage', { regionId, imageId: short.ImageId }));
  await until('deleted', () => call('DeleteImage', { regionId, imageId: short.ImageId }), (_, code) => code === 'InvalidImageId.NotFound');

  await step('wrong secret', () => connect(KEY, 'wrong')('DescribeRegions', {}));
  await step('unknown key', () => connect('red', 'wrong')('DescribeRegions', {}));
  await step('session', () => connect(SESSION, SESSION_SECRET, SESSION_TOKEN)('DescribeImages', { regionId }));
  await step('wrong token', () => connect(SESSION, SESSION_SECRET, 'wrong')('DescribeImages', { regionId }));
}

Promise.all([
  life('generated', generated),
  life('generic-GET', generic('GET')),
  life('generic-POST', generic('POST')),
]).catch((e) => {
  console.error(e);
  process.exit(1);
});
