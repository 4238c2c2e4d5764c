package io.github.attentionservice;

import java.io.IOException;
import java.io.OutputStream;

/** Writes bytes of tensors, through a small buffer where they are not in an array of bytes. */
final class ElementWriter {
  // Fits into a core's own cache. A multiple of every element's size.
  private static final int BUFFER_BYTES = 64 << 10;
  // Shorter runs are gathered.
  private static final int LEAST_DIRECT_BYTES = 4 << 10;

  private final OutputStream out;
  private byte[] buffer;
  private int filled;

  ElementWriter(OutputStream out) {
    this.out = out;
  }

  /** What it holds back is written by {@link #flush}. */
  void write(Tensor tensor, long offset, long length) throws IOException {
    byte[] array = tensor.array();
    if (array != null && length >= LEAST_DIRECT_BYTES) {
      flush();
      out.write(array, tensor.arrayOffset() + (int) offset, (int) length);
      return;
    }
    while (length > 0) {
      if (buffer == null) {
        buffer = new byte[(int) Math.min(BUFFER_BYTES, Math.max(length, 1 << 10))];
      } else if (filled > 0 && buffer.length - filled < Math.min(length, 8)) {
        flush();
      }
      int count = (int) Math.min(length, buffer.length - filled);
      // Whole elements. Those before may be of another size, so their end may be anywhere.
      count -= count % tensor.dataType().bytes();
      if (count == 0) {
        flush();
        buffer = buffer.length < BUFFER_BYTES ? null : buffer;
        continue;
      }
      tensor.copyBytes(offset, buffer, filled, count);
      filled += count;
      offset += count;
      length -= count;
    }
  }

  void flush() throws IOException {
    if (filled > 0) {
      out.write(buffer, 0, filled);
      filled = 0;
    }
  }
}
