// ioredis. See the package's __init__.py.
import { createRequire } from "node:module";

const Redis = createRequire(`${process.env.NODE_PATH}/`)("ioredis");
const port = Number(process.argv[2]);
const client = () => {
  const made = new (Redis.default ?? Redis)(port, "127.0.0.1");
  made.on("error", () => {});
  return made;
};
const pause = () => new Promise((resolve) => setTimeout(resolve, 1));

async function count() {
  const own = client();
  for (let number = 0; ; await pause()) {
    await own.incr("counter").then(() => console.log("ack", (number += 1)), () => {});
  }
}

async function pop() {
  const own = client();
  for (;;) {
    const item = await own.blpop("queue", 1).catch(pause);
    if (item) console.log("popped", item[1]);
  }
}

async function listen() {
  const own = client();
  own.on("message", (_, message) => console.log("heard", message));
  await own.subscribe("channel");
}

await Promise.all([count(), pop(), listen()]);
