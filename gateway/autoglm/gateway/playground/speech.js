/** Recordings: from the microphone and from files, in a format that the server reads. */

const RATE = 16000; // samples a second: what speech models hear
const HEADER = 44; // bytes
const SERVED = /^(audio\/(x-)?(wav|wave|mpeg|mp3|flac|ogg|opus|aac|m4a|mp4|webm|amr|3gpp)|video\/(mp4|webm|3gpp))$/;

/** Record from the microphone; return a function that ends it and returns the recording as the browser made it. */
export async function record() {
  const stream = await navigator.mediaDevices.getUserMedia({ audio: true });
  const recorder = new MediaRecorder(stream);
  const pieces = [];
  const ended = new Promise((resolve) => recorder.addEventListener("stop", resolve));
  recorder.addEventListener("dataavailable", (event) => pieces.push(event.data));
  recorder.start();
  return async () => {
    recorder.stop();
    await ended;
    for (const track of stream.getTracks()) track.stop();
    return new Blob(pieces, { type: recorder.mimeType });
  };
}

/** Return a recording in a format that the server reads; throws where neither server nor browser can read it. */
export const readable = (file) => (SERVED.test(file.type) ? file : wav(file));

/** Return any recording that the browser can decode as WAV, 16 kHz mono PCM. */
async function wav(recording) {
  const decoder = new OfflineAudioContext(1, 1, RATE); // decodes to its own rate
  const buffer = await decoder.decodeAudioData(await recording.arrayBuffer());
  const mixer = new OfflineAudioContext(1, buffer.length, RATE); // mixes to its one channel
  const source = new AudioBufferSourceNode(mixer, { buffer });
  source.connect(mixer.destination);
  source.start();
  return encode((await mixer.startRendering()).getChannelData(0));
}

/** Return samples from -1 to 1 as a WAV file of 16 bits. */
function encode(samples) {
  const view = new DataView(new ArrayBuffer(HEADER + 2 * samples.length));
  const text = (offset, letters) => [...letters].forEach((c, i) => view.setUint8(offset + i, c.charCodeAt(0)));
  text(0, "RIFF");
  view.setUint32(4, HEADER - 8 + 2 * samples.length, true);
  text(8, "WAVEfmt ");
  view.setUint32(16, 16, true); // bytes of the format
  view.setUint16(20, 1, true); // PCM
  view.setUint16(22, 1, true); // channels
  view.setUint32(24, RATE, true);
  view.setUint32(28, 2 * RATE, true); // bytes a second
  view.setUint16(32, 2, true); // bytes a sample
  view.setUint16(34, 16, true); // bits a sample
  text(36, "data");
  view.setUint32(40, 2 * samples.length, true);
  samples.forEach((sample, i) => view.setInt16(HEADER + 2 * i, 32767 * Math.max(-1, Math.min(1, sample)), true));
  return new Blob([view], { type: "audio/wav" });
}
