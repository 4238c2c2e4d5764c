package io.github.attentionservice;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Optional;

/** Reads tensors of answers, which no server has to be trusted to have made well. */
final class Answers {
  private Answers() {}

  static Optional<Tensor> optional(
      boolean present, io.github.attentionservice.proto.attention.Tensor tensor) {
    return present ? Optional.of(tensor(tensor)) : Optional.empty();
  }

  /** Without a copy. */
  static Tensor tensor(io.github.attentionservice.proto.attention.Tensor tensor) {
    long[] shape = new long[tensor.getShapeCount()];
    for (int i = 0; i < shape.length; ++i) {
      shape[i] = tensor.getShape(i);
    }
    DataType type = DataType.of(tensor.getDataTypeValue());
    if (type == null || type == DataType.BITS) {
      throw AttentionException.malformed("a tensor of type " + tensor.getDataTypeValue());
    }
    try {
      return Tensor.ofBytes(type, tensor.getData().asReadOnlyByteBuffer(), shape);
    } catch (IllegalArgumentException e) {
      throw AttentionException.malformed(e.getMessage());
    }
  }

  /** Throws where this cannot be the output for the query. */
  static void checkOutput(Tensor output, Tensor query, long[] shape) {
    if (output.dataType() != query.dataType() || !Arrays.equals(output.shape(), shape)) {
      throw AttentionException.malformed(
          "output: got " + output + ", wanted " + query.dataType() + " " + Arrays.toString(shape));
    }
  }

  /** Throws where something is missing that was asked for. */
  static void checkAsked(
      io.github.attentionservice.proto.attention.AttentionOptions options,
      Optional<Tensor> logSumExp,
      Optional<Tensor> scores,
      Optional<Tensor> present) {
    if (options.getReturnLogSumExp() && logSumExp.isEmpty()) {
      throw AttentionException.malformed("no log_sum_exp");
    }
    if (options.getReturnScoresValue() != 0 && scores.isEmpty()) {
      throw AttentionException.malformed("no scores");
    }
    if (options.getReturnPresent() && present.isEmpty()) {
      throw AttentionException.malformed("no present_key or present_value");
    }
  }

  /** Joins parts along an axis of which they have `wanted` elements together. */
  static Tensor join(List<Tensor> parts, int axis, long wanted) {
    if (parts.isEmpty()) {
      throw AttentionException.malformed("no rows");
    }
    Tensor first = parts.get(0);
    List<AxisRuns> runs = new ArrayList<>();
    long length = 0;
    for (Tensor part : parts) {
      if (part.rank() <= axis) {
        throw AttentionException.malformed("rows of shape " + part);
      }
      AxisRuns run = AxisRuns.of(part, axis);
      if (part.dataType() != first.dataType()
          || !Arrays.equals(run.shape(0), AxisRuns.of(first, axis).shape(0))) {
        throw AttentionException.malformed("rows of " + part + " after those of " + first);
      }
      runs.add(run);
      length += run.length();
    }
    if (length != wanted) {
      throw AttentionException.malformed("got " + length + " rows, wanted " + wanted);
    }
    if (parts.size() == 1) {
      return first;
    }
    return Tensor.ofBytes(
        first.dataType(), java.nio.ByteBuffer.wrap(joined(runs)), runs.get(0).shape(length));
  }

  private static byte[] joined(List<AxisRuns> runs) {
    long bytes = 0;
    for (AxisRuns run : runs) {
      bytes += run.tensor().byteSize();
    }
    if (bytes > Integer.MAX_VALUE - 8) {
      throw AttentionException.malformed("rows of " + bytes + " bytes");
    }
    byte[] joined = new byte[(int) bytes];
    int at = 0;
    for (long i = 0; i < runs.get(0).outer(); ++i) {
      for (AxisRuns run : runs) {
        int count = (int) (run.length() * run.inner());
        run.tensor().copyBytes(run.offset(i, 0), joined, at, count);
        at += count;
      }
    }
    return joined;
  }
}
