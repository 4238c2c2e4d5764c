package io.github.attentionservice;

import com.google.protobuf.CodedOutputStream;
import com.google.protobuf.MessageLite;
import com.google.protobuf.WireFormat;
import io.grpc.Drainable;
import io.grpc.KnownLength;
import java.io.ByteArrayInputStream;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.io.UncheckedIOException;
import java.util.ArrayList;
import java.util.List;

/**
 * A protobuf message that is written once it goes to the transport, from the memory in which the
 * caller has its tensors. Fields stand in the order in which they are added.
 */
final class WireMessage {
  /** Writes some bytes of the message. */
  private interface Part {
    void writeTo(OutputStream out) throws IOException;
  }

  private final List<Part> parts = new ArrayList<>();
  private long length;

  /** In bytes. */
  long length() {
    return length;
  }

  WireMessage string(int field, String value) {
    return value.isEmpty()
        ? this
        : small(
            CodedOutputStream.computeStringSize(field, value),
            out -> out.writeString(field, value));
  }

  WireMessage int64(int field, long value) {
    return value == 0 ? this : presentInt64(field, value);
  }

  /** Also where it is 0. */
  WireMessage presentInt64(int field, long value) {
    return small(
        CodedOutputStream.computeInt64Size(field, value), out -> out.writeInt64(field, value));
  }

  WireMessage uint64(int field, long value) {
    return value == 0
        ? this
        : small(
            CodedOutputStream.computeUInt64Size(field, value),
            out -> out.writeUInt64(field, value));
  }

  WireMessage bool(int field, boolean value) {
    return value
        ? small(CodedOutputStream.computeBoolSize(field, true), out -> out.writeBool(field, true))
        : this;
  }

  WireMessage packedInt64s(int field, long[] values) {
    if (values.length == 0) {
      return this;
    }
    int bytes = 0;
    for (long value : values) {
      bytes += CodedOutputStream.computeInt64SizeNoTag(value);
    }
    int payload = bytes;
    return small(
        prefixSize(field, payload) + payload,
        out -> {
          out.writeTag(field, WireFormat.WIRETYPE_LENGTH_DELIMITED);
          out.writeUInt32NoTag(payload);
          for (long value : values) {
            out.writeInt64NoTag(value);
          }
        });
  }

  WireMessage message(int field, MessageLite message) {
    return small(
        CodedOutputStream.computeMessageSize(field, message),
        out -> out.writeMessage(field, message));
  }

  WireMessage message(int field, WireMessage message) {
    prefix(field, message.length);
    parts.addAll(message.parts);
    length += message.length;
    return this;
  }

  /** Nothing if there is no tensor. */
  WireMessage tensor(int field, Tensor tensor) {
    return tensor == null
        ? this
        : message(field, head(tensor.dataType(), tensor.shape()).data(tensor));
  }

  /** Type and shape of a tensor, without its elements; nothing if there is no tensor. */
  WireMessage tensorHead(int field, Tensor tensor) {
    return tensor == null ? this : message(field, head(tensor.dataType(), tensor.shape()));
  }

  /** Elements [begin, end) of the axis. */
  WireMessage tensorSlice(int field, AxisRuns runs, long begin, long end) {
    WireMessage tensor = head(runs.tensor().dataType(), runs.shape(end - begin));
    long run = (end - begin) * runs.inner();
    tensor.data(
        run * runs.outer(),
        writer -> {
          for (long i = 0; i < runs.outer(); ++i) {
            writer.write(runs.tensor(), runs.offset(i, begin), run);
          }
        });
    return message(field, tensor);
  }

  /**
   * Tokens [begin, end) of a past tensor (B, Hkv, P, D), as a slice of shape `shape` in whose
   * layout heads stand after tokens.
   */
  WireMessage pastWithHeadsLast(int field, AxisRuns past, long[] shape, long begin, long end) {
    long heads = past.tensor().axis(1);
    WireMessage tensor = head(past.tensor().dataType(), shape);
    tensor.data(
        (end - begin) * past.bytesPerElement(),
        writer -> {
          for (long b = 0; b < past.tensor().axis(0); ++b) {
            for (long token = begin; token < end; ++token) {
              for (long h = 0; h < heads; ++h) {
                writer.write(past.tensor(), past.offset(b * heads + h, token), past.inner());
              }
            }
          }
        });
    return message(field, tensor);
  }

  /** The same of one whose heads stand before tokens, but whose rank may be another. */
  WireMessage pastWithHeadsFirst(int field, AxisRuns past, long[] shape, long begin, long end) {
    WireMessage tensor = head(past.tensor().dataType(), shape);
    long run = (end - begin) * past.inner();
    tensor.data(
        run * past.outer(),
        writer -> {
          for (long i = 0; i < past.outer(); ++i) {
            writer.write(past.tensor(), past.offset(i, begin), run);
          }
        });
    return message(field, tensor);
  }

  private interface ElementsPart {
    void writeTo(ElementWriter writer) throws IOException;
  }

  private static WireMessage head(DataType type, long[] shape) {
    return new WireMessage()
        .presentInt64(
            io.github.attentionservice.proto.attention.Tensor.DATA_TYPE_FIELD_NUMBER, type.number())
        .packedInt64s(io.github.attentionservice.proto.attention.Tensor.SHAPE_FIELD_NUMBER, shape);
  }

  private WireMessage data(Tensor tensor) {
    return data(tensor.byteSize(), writer -> writer.write(tensor, 0, tensor.byteSize()));
  }

  private WireMessage data(long bytes, ElementsPart elements) {
    if (bytes == 0) {
      return this;
    }
    prefix(io.github.attentionservice.proto.attention.Tensor.DATA_FIELD_NUMBER, bytes);
    parts.add(
        out -> {
          ElementWriter writer = new ElementWriter(out);
          elements.writeTo(writer);
          writer.flush();
        });
    length += bytes;
    return this;
  }

  private static int prefixSize(int field, long bytes) {
    return CodedOutputStream.computeTagSize(field)
        + CodedOutputStream.computeUInt64SizeNoTag(bytes);
  }

  private void prefix(int field, long bytes) {
    small(
        prefixSize(field, bytes),
        out -> {
          out.writeTag(field, WireFormat.WIRETYPE_LENGTH_DELIMITED);
          out.writeUInt64NoTag(bytes);
        });
  }

  private interface Fields {
    void writeTo(CodedOutputStream out) throws IOException;
  }

  private WireMessage small(int bytes, Fields fields) {
    byte[] encoded = new byte[bytes];
    CodedOutputStream out = CodedOutputStream.newInstance(encoded);
    try {
      fields.writeTo(out);
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
    out.checkNoSpaceLeft();
    parts.add(to -> to.write(encoded));
    length += bytes;
    return this;
  }

  private void writeTo(OutputStream out) throws IOException {
    for (Part part : parts) {
      part.writeTo(out);
    }
  }

  /** For the transport, which drains it. */
  InputStream stream() {
    return new Stream();
  }

  private final class Stream extends InputStream implements Drainable, KnownLength {
    // Only where a transport does not drain.
    private InputStream encoded;
    private boolean drained;

    @Override
    public int drainTo(OutputStream target) throws IOException {
      int bytes = available();
      if (encoded != null) {
        encoded.transferTo(target);
      } else if (!drained) {
        writeTo(target);
      }
      drained = true;
      return bytes;
    }

    @Override
    public int available() throws IOException {
      if (encoded != null) {
        return encoded.available();
      }
      return drained ? 0 : Math.toIntExact(length);
    }

    @Override
    public int read() throws IOException {
      return encoded().read();
    }

    @Override
    public int read(byte[] to, int at, int count) throws IOException {
      return encoded().read(to, at, count);
    }

    private InputStream encoded() throws IOException {
      if (encoded == null) {
        ByteArrayOutputStream bytes = new ByteArrayOutputStream(available());
        drainTo(bytes);
        encoded = new ByteArrayInputStream(bytes.toByteArray());
      }
      return encoded;
    }
  }
}
