// node-redis. See the package's __init__.py.
import { createRequire } from "node:module";

const { createClient } = createRequire(`${process.env.NODE_PATH}/`)("redis");
const port = Number(process.argv[2]);
const client = async () => {
  const made = createClient({ url: `redis://127.0.0.1:${port}` });
  made.on("error", () => {});
  return made.connect();
};
const pause = () => new Promise((resolve) => setTimeout(resolve, 1));

async function count() {
  const own = await client();
  for (let number = 0; ; await pause()) {
    await own.incr("counter").then(() => console.log("ack", (number += 1)), () => {});
  }
}

async function pop() {
  const own = await client();
  for (;;) {
    const item = await own.blPop("queue", 1).catch(pause);
    if (item) console.log("popped", item.element);
  }
}

async function listen() {
  const own = await client();
  await own.subscribe("channel", (message) => console.log("heard", message));
}

await Promise.all([count(), pop(), listen()]);
