// What Neon's serverless driver gets of the lab, as JSON: test_neon_driver.py says what it should be.
//
//     node neon_driver.mjs FOLDER < {"https": port, "direct": url, "replica": url, "write": url, "read": url, "wrong": url, "table": name}

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const require = createRequire(process.argv[2] + "/");
const { Client, Pool, neon, neonConfig, NeonDbError } = require("@neondatabase/serverless");
const given = JSON.parse(readFileSync(0, "utf8"));

neonConfig.fetchEndpoint = () => `https://localhost:${given.https}/sql`;
neonConfig.wsProxy = (host, port) => `${host}:${given.https}/v2?address=${host}:${port}`;
neonConfig.webSocketConstructor = require("ws");
neonConfig.useSecureWebSocket = true;
neonConfig.forceDisablePgSSL = true;
neonConfig.pipelineConnect = false; // PlanetScale: only SCRAM

const found = {};

async function failure(work) {
  try {
    await work();
  } catch (error) {
    const { message, code, constraint, detail, position, severity } = error;
    return { ours: error instanceof NeonDbError, message, code, constraint, detail, position, severity };
  }
}

async function http() {
  const sql = neon(given.direct);
  found.rows = await sql`SELECT ${1}::int + 1 AS number, ${"é"} AS text, ${null}::text AS nothing, ${[1, [2, null]]}::text AS list`;
  found.values = await sql.query("SELECT $1::bytea, $2::timestamptz, $3::jsonb, $4::int[]", [
    Buffer.from([0, 255]), new Date(0), { a: 1 }, [1, 2],
  ]);
  found.arrays = await sql.query("SELECT 1 AS a, 2 AS a", [], { arrayMode: true });
  const full = await sql.query("SELECT 1 AS a UNION SELECT 2 ORDER BY 1", [], { fullResults: true });
  found.full = {
    fields: full.fields.map(({ name, dataTypeID }) => [name, dataTypeID]),
    command: full.command, rowCount: full.rowCount, rowAsArray: full.rowAsArray, rows: full.rows,
  };
  const created = await sql.query(`CREATE TABLE ${given.table} (n int PRIMARY KEY)`, [], { fullResults: true });
  found.created = [created.command, created.rowCount];
  await sql.query(`INSERT INTO ${given.table} VALUES (1)`);
  found.unique = await failure(() => sql.query(`INSERT INTO ${given.table} VALUES (1)`));
  found.division = await failure(() => sql`SELECT 1 / ${0}::int`);
  found.syntax = await failure(() => sql`SELEC 1`);
  found.password = await failure(() => neon(given.wrong)`SELECT 1`);
  found.tooLarge = await failure(() => sql`SELECT repeat('x', 11000000)`);
  const modes = "SELECT current_setting('transaction_isolation') AS i, current_setting('transaction_read_only') AS r,"
    + " current_setting('transaction_deferrable') AS d";
  found.batch = await sql.transaction([sql.query(modes), sql`SELECT ${7}::int AS n`], {
    isolationLevel: "Serializable", readOnly: true, deferrable: true,
  });
  found.batchError = await failure(() => sql.transaction([sql.query(`INSERT INTO ${given.table} VALUES (2)`), sql`SELECT 1 / 0`]));
  found.count = await sql.query(`SELECT count(*)::int AS n FROM ${given.table}`);
  found.ways = {};
  for (const way of ["direct", "replica", "write", "read"]) {
    [found.ways[way]] = await neon(given[way])`SELECT pg_is_in_recovery() AS replica, current_user AS user`;
  }
}

async function websocket() {
  const pool = new Pool({ connectionString: given.write, max: 1 });
  const client = await pool.connect();
  await client.query("BEGIN");
  await client.query(`INSERT INTO ${given.table} VALUES ($1)`, [3]);
  found.inside = (await client.query(`SELECT n FROM ${given.table} ORDER BY n`)).rows;
  await client.query("ROLLBACK");
  await client.query("BEGIN");
  await client.query(`INSERT INTO ${given.table} VALUES ($1)`, [4]);
  await client.query("COMMIT");
  const wrong = await failure(() => client.query("SELECT 1 / 0"));
  found.sessionError = [wrong.code, wrong.message];
  found.after = (await client.query(`SELECT n FROM ${given.table} ORDER BY n`)).rows;
  found.much = (await client.query("SELECT length($1) AS n, repeat('y', 3000000) AS y", ["x".repeat(3_000_000)])).rows
    .map(({ n, y }) => [n, y.length]);
  client.release();
  await pool.end();
  found.sockets = {};
  for (const way of ["direct", "replica", "write", "read"]) {
    const one = new Client(given[way]);
    await one.connect();
    [found.sockets[way]] = (await one.query("SELECT pg_is_in_recovery() AS replica, current_user AS user")).rows;
    await one.end();
  }
  const refused = new Client(given.wrong);
  refused.on("error", () => {});
  found.refused = await failure(() => refused.connect());
}

await http();
await websocket();
console.log(JSON.stringify(found));
