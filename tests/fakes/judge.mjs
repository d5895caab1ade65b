// A receiver in Node: what it says of each request and each published signature, for all of them in one process.
// In: {"requests": [{"secret" | "public_key", "headers", "body"}], "signatures": [{"secret", "id", "timestamp", "payload"}]}
// Out: {"requests": ["" | why it is refused], "signatures": [signature]}
import { createPrivateKey, createPublicKey, sign, verify } from "node:crypto";
import { readFileSync } from "node:fs";
import { Webhook } from "standardwebhooks";

// RFC 8410: what stands before the 32 bytes of an ed25519 key in PKCS#8 and in a SubjectPublicKeyInfo.
const PRIVATE_KEY_HEAD = Buffer.from("302e020100300506032b657004220420", "hex");
const PUBLIC_KEY_HEAD = Buffer.from("302a300506032b6570032100", "hex");
const TOLERANCE_S = 300;

const keyBytes = (text, prefix) => Buffer.from(text.slice(prefix.length), "base64");

function verifyByLibrary({ secret, headers, body }) {
  new Webhook(secret).verify(body, headers);
}

function verifyByPublicKey({ public_key, headers, body }) {
  const id = headers["webhook-id"];
  const timestamp = headers["webhook-timestamp"];
  if (Math.abs(Date.now() / 1000 - Number(timestamp)) > TOLERANCE_S) throw new Error("the timestamp is too far off");
  const der = Buffer.concat([PUBLIC_KEY_HEAD, keyBytes(public_key, "whpk_")]);
  const key = createPublicKey({ key: der, format: "der", type: "spki" });
  const signed = Buffer.from(`${id}.${timestamp}.${body}`);
  const signatures = headers["webhook-signature"].split(" ").filter((one) => one.startsWith("v1a,"));
  if (!signatures.some((one) => verify(null, signed, key, keyBytes(one, "v1a,")))) throw new Error("no signature holds");
}

function verdict(request) {
  try {
    if (request.public_key) verifyByPublicKey(request);
    else verifyByLibrary(request);
    return "";
  } catch (error) {
    return `${error.message}`;
  }
}

function signature({ secret, id, timestamp, payload }) {
  if (secret.startsWith("whsec_")) return new Webhook(secret).sign(id, new Date(timestamp * 1000), payload);
  const der = Buffer.concat([PRIVATE_KEY_HEAD, keyBytes(secret, "whsk_")]);
  const key = createPrivateKey({ key: der, format: "der", type: "pkcs8" });
  return `v1a,${sign(null, Buffer.from(`${id}.${timestamp}.${payload}`), key).toString("base64")}`;
}

const { requests, signatures } = JSON.parse(readFileSync(0, "utf8"));
process.stdout.write(JSON.stringify({ requests: requests.map(verdict), signatures: signatures.map(signature) }));
