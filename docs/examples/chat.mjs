// Chat with the `ollama` package; GATEWAY_URL and GATEWAY_KEY say where and as whom.
//   npm install ollama && node chat.mjs
import { Ollama } from "ollama";

const ollama = new Ollama({
  host: process.env.GATEWAY_URL,
  headers: { Authorization: `Bearer ${process.env.GATEWAY_KEY}` },
});
const model = process.argv[2] ?? "llama3.1";

try {
  const { models } = await ollama.list();
  console.log("models:", ...models.map((found) => found.name));
  const messages = [{ role: "user", content: "Hello" }];
  for await (const part of await ollama.chat({ model, messages, stream: true })) {
    process.stdout.write(part.message.content);
  }
  console.log();
} catch (error) {
  // The package expects a text as the error and prints our object as
  // "[object Object]": the object itself stands in error.error.
  const { code, message, request_id } = error.error ?? {};
  console.error(error.status_code, code, message ?? error.message, request_id);
  process.exitCode = 1;
}
