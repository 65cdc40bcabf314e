// process.stdout and process.stderr of the user's realm, on the pipes that the worker reads.
import { writeSync } from "node:fs";
import { Writable } from "node:stream";

const moment = new Int32Array(new SharedArrayBuffer(4));

/** Writes all of it before it returns: what a cell prints is there before its result is. */
function writeAll(descriptor, data) {
  for (let done = 0; done < data.length; ) {
    try {
      done += writeSync(descriptor, data, done);
    } catch (error) {
      // A child process may have made the pipe it shares with us a non-blocking one.
      if (error.code !== "EAGAIN") throw error;
      Atomics.wait(moment, 0, 0, 1);
    }
  }
}

class Output extends Writable {
  constructor(descriptor) {
    super({ decodeStrings: true });
    this.fd = descriptor;
    this.isTTY = false;
  }

  _write(chunk, _encoding, done) {
    writeAll(this.fd, chunk);
    done();
  }

  _destroy(_error, done) {
    // The pipes are the kernel's, whatever the user's code ends.
    done();
  }
}

export function installStreams() {
  const streams = { stdout: new Output(1), stderr: new Output(2) };
  for (const [name, stream] of Object.entries(streams)) {
    Object.defineProperty(process, name, { value: stream, configurable: true, enumerable: true });
  }
  return streams;
}
