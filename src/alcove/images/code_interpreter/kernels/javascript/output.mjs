// The read ends of the kernel's standard output and error.
import { constants, openSync, readSync, rmSync } from "node:fs";
import net from "node:net";
import path from "node:path";
import { StringDecoder } from "node:string_decoder";

const MOST_BYTES = 64 * 1024;

export class Output {
  #emit;
  #pipes = [];

  /** `emit(name, text)` answers a promise; nothing is read until it is fulfilled. */
  constructor(directory, emit) {
    this.#emit = emit;
    for (const name of ["stdout", "stderr"]) {
      const fd = openSync(path.join(directory, name), constants.O_RDONLY | constants.O_NONBLOCK);
      const pipe = { name, fd, decoder: new StringDecoder("utf8") };
      const socket = new net.Socket({ fd, readable: true, writable: false });
      socket.on("data", async (data) => {
        // What prints waits meanwhile, as the pipe is full.
        socket.pause();
        await this.#put(pipe, data);
        socket.resume();
      });
      this.#pipes.push(pipe);
    }
    rmSync(directory, { recursive: true, force: true });
  }

  /** Emits all that was written until now. */
  drain() {
    const buffer = Buffer.alloc(MOST_BYTES);
    for (const pipe of this.#pipes) {
      for (let tries = 0; tries < 1000; tries += 1) {
        let size;
        try {
          size = readSync(pipe.fd, buffer);
        } catch (error) {
          if (error.code === "EAGAIN") break;
          throw error;
        }
        if (size === 0) break;
        this.#put(pipe, buffer.subarray(0, size));
      }
    }
  }

  #put(pipe, data) {
    const text = pipe.decoder.write(data);
    return text ? this.#emit(pipe.name, text) : Promise.resolve();
  }
}
