// @anthropic-ai/sdk: messages, streamed and not, a second turn, errors.
import Anthropic from "@anthropic-ai/sdk";

const [url, model] = process.argv.slice(2);
const client = new Anthropic({ baseURL: url, apiKey: "none", maxRetries: 0 });
const asked = { model, max_tokens: 8, temperature: 0, system: "You are terse.", messages: [{ role: "user", content: "How are you?" }] };

const answer = await client.messages.create(asked);
const final = await client.messages.stream(asked).finalMessage();
const turn = [{ role: "assistant", content: answer.content[0].text }, { role: "user", content: "And now?" }];
const second = await client.messages.create({ ...asked, messages: [...asked.messages, ...turn] });
let error = ["no error"];
try {
  await client.messages.create({ ...asked, model: "nobody" });
} catch (caught) {
  error = [caught.constructor.name, caught.status];
}
console.log(JSON.stringify({
  message: [answer.content[0].text, answer.stop_reason, answer.usage.output_tokens],
  streamed: [final.content[0].text, final.stop_reason],
  secondTurn: second.content[0].text,
  unknownModel: error,
}));
