// Jupyter's messages (protocol 5.3) on ZeroMQ sockets: framing, signatures, addresses.
import { createHmac, randomUUID, timingSafeEqual } from "node:crypto";
import { readFileSync } from "node:fs";

const DELIMITER = "<IDS|MSG>";

export class Connection {
  constructor(path) {
    this.info = JSON.parse(readFileSync(path, "utf8"));
    this.session = randomUUID();
  }

  address(name) {
    const { transport, ip } = this.info;
    const port = this.info[`${name}_port`];
    return transport === "ipc" ? `ipc://${ip}-${port}` : `${transport}://${ip}:${port}`;
  }

  #sign(parts) {
    const hmac = createHmac("sha256", this.info.key);
    for (const part of parts) hmac.update(part);
    return hmac.digest("hex");
  }

  /** null for what is not a message of this session's owner. */
  parse(frames) {
    const at = frames.findIndex((frame) => frame.equals(Buffer.from(DELIMITER)));
    if (at < 0 || frames.length < at + 6) return null;
    const [signature, ...parts] = frames.slice(at + 1, at + 6);
    if (this.info.key) {
      const expected = Buffer.from(this.#sign(parts));
      if (expected.length !== signature.length || !timingSafeEqual(expected, signature)) return null;
    }
    try {
      const [header, parent, metadata, content] = parts.map((part) => JSON.parse(part.toString()));
      return { identities: frames.slice(0, at), header, parent, metadata, content };
    } catch {
      return null;
    }
  }

  frames(type, content, parent, identities) {
    const header = {
      msg_id: randomUUID(),
      session: this.session,
      username: "kernel",
      date: new Date().toISOString(),
      msg_type: type,
      version: "5.3",
    };
    const parts = [header, parent ?? {}, {}, content].map((part) => JSON.stringify(part));
    return [...identities, DELIMITER, this.info.key ? this.#sign(parts) : "", ...parts];
  }
}
