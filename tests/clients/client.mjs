// Does with the `ollama` package what its argument says; prints one line of JSON.
import { Ollama } from "ollama";

const ollama = new Ollama({
  host: process.env.GATEWAY_URL,
  headers: { Authorization: `Bearer ${process.env.GATEWAY_KEY}` },
});
const [action, model] = process.argv.slice(2);
const messages = [{ role: "user", content: "Hello" }];
const city = { type: "object", properties: { city: { type: "string" } } };
const weather = { name: "weather", description: "", parameters: city };

async function pieces(stopAfter = Infinity) {
  const got = [];
  const stream = await ollama.chat({ model, messages, stream: true });
  for await (const part of stream) {
    got.push(part.message.content);
    if (got.length === stopAfter) stream.abort();
  }
  return got.filter(Boolean);
}

const actions = {
  list: async () => (await ollama.list()).models.map((found) => found.name),
  show: async () => (await ollama.show({ model })).details.family,
  chat: async () => (await ollama.chat({ model, messages })).message.content,
  stream: () => pieces(),
  tool: async () => {
    const tools = [{ type: "function", function: weather }];
    const answer = await ollama.chat({ model, messages, tools });
    return answer.message.tool_calls[0].function;
  },
  embed: async () => (await ollama.embed({ model, input: "Hello" })).embeddings[0],
  abort: () => pieces(1),
};

try {
  console.log(JSON.stringify({ result: await actions[action]() }));
} catch (error) {
  const { name, message, status_code, error: inner } = error;
  console.log(JSON.stringify({ name, message, status_code, inner }));
}
