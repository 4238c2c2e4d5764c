// As client.go, in Node: node client.js ADDRESS SERVICE_CONFIG large|PADDING
"use strict";

const grpc = require("@grpc/grpc-js");
const {connect, compute} = require("./readme.js");

// One row of `width` numbers, each of them `value`.
function row(width, value) {
  const data = Buffer.from(new Float32Array(width).fill(value).buffer);
  return {dataType: "DATA_TYPE_FLOAT32", shape: [1, width], data};
}

function request(size) {
  const one = row(1, 1);
  if (size === "large") {
    const queries = {...row(2048, 1), shape: [2048, 1]};
    return {query: queries, key: one, value: row(600, 1.5)};
  }
  return {query: one, key: one, value: row(Number(size) / 4, 1.5)};
}

const [address, serviceConfig, size] = process.argv.slice(2);
const client = connect(address, grpc.credentials.createInsecure(), serviceConfig);
compute(client, "a-token", request(size), (error, response) => {
  const result = {code: error ? error.code : grpc.status.OK};
  if (!error) {
    const {data} = response.output;
    Object.assign(result, {bytes: data.length, first: data.readFloatLE(0)});
  }
  console.log(JSON.stringify(result));
  client.close();
});
