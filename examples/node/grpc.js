// The mesh's gRPC door from Node.js, with nothing but the protos: a question about a screenshot, streamed.

import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { credentials, loadPackageDefinition } from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";

const protos = fileURLToPath(new URL("../../protos", import.meta.url));
const { autoglm } = loadPackageDefinition(loadSync("autoglm/v1/chat.proto", { includeDirs: [protos], defaults: true }));
const chats = new autoglm.v1.ChatService(process.argv[2] ?? "localhost:50051", credentials.createInsecure());

const screen = readFileSync(new URL("../home.png", import.meta.url));
const messages = [{ role: "ROLE_USER", parts: [{ image: { data: screen } }, { text: "屏幕上有游戏吗?" }] }];
const request = { chat: { messages, sampling: { temperature: 0 } } };
let last;
for await (const response of chats.StreamComplete(request, { deadline: Date.now() + 30_000 })) {
  process.stdout.write(response.delta.text);
  last = response;
}
console.log(`\nprompt ${last.summary.usage.promptTokens} tokens`);
chats.close();
