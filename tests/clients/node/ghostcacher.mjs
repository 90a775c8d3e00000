// @ghostcacher/client: both APIs, whole and streamed, errors.
import { GhostCacherClient, StatusError } from "../../../sdk/typescript/dist/esm/index.js";

const [url, model] = process.argv.slice(2);
const given = {
  model,
  max_tokens: 8,
  temperature: 0,
  system: "You are terse.",
  documents: ["The sky is blue.", "Grass is green."],
  messages: [{ role: "user", content: "How are you?" }],
};
const report = {};
for (const provider of ["anthropic", "openai"]) {
  const client = new GhostCacherClient({ provider, ghostcacherUrl: url, retriesMax: 0 });
  const answer = await client.messages.create(given);
  let streamed = "";
  for await (const text of (await client.messages.create({ ...given, stream: true })).texts()) streamed += text;
  let error = "no error";
  try {
    await client.messages.create({ ...given, model: "nobody" });
  } catch (caught) {
    error = caught instanceof StatusError ? caught.status : String(caught);
  }
  report[provider] = [answer.text, streamed === answer.text, error];
}
const client = new GhostCacherClient({ provider: "openai", ghostcacherUrl: url });
report.completion = (await client.completions.create({ model, prompt: "One two", max_tokens: 8, temperature: 0 })).text;
console.log(JSON.stringify(report));
