package io.github.attentionservice;

import com.google.gson.JsonObject;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.util.HexFormat;

/** Numbers that any language makes alike, and the digest of an answer: tests/vectors/README.md. */
final class Pattern {
  private Pattern() {}

  static long whole(long i, long seed) {
    long mixed = i * 2654435761L + seed * 40503 & 0xffffffffL;
    return (mixed >> 16) % 255 - 127;
  }

  static float[] floats(int count, long seed) {
    float[] floats = new float[count];
    for (int i = 0; i < count; ++i) {
      floats[i] = whole(i, seed) / 64f;
    }
    return floats;
  }

  static Tensor fill(DataType type, long seed, long... shape) {
    long count = 1;
    for (long axis : shape) {
      count *= axis;
    }
    float[] floats = floats((int) count, seed);
    switch (type) {
      case FLOAT32:
        return Tensor.of(floats, shape);
      case FLOAT16:
        return Tensor.ofFloat16(Float16.fromFloats(floats), shape);
      case BFLOAT16:
        return Tensor.ofBfloat16(Bfloat16.fromFloats(floats), shape);
      case FLOAT64:
        double[] doubles = new double[floats.length];
        for (int i = 0; i < doubles.length; ++i) {
          doubles[i] = floats[i];
        }
        return Tensor.of(doubles, shape);
      case BOOL:
        boolean[] odd = new boolean[floats.length];
        for (int i = 0; i < odd.length; ++i) {
          odd[i] = whole(i, seed) % 2 != 0;
        }
        return Tensor.of(odd, shape);
      default:
        throw new IllegalArgumentException("type " + type);
    }
  }

  static Tensor fill(long seed, long... shape) {
    return fill(DataType.FLOAT32, seed, shape);
  }

  static Tensor fill(JsonObject tensor) {
    return fill(
        DataType.valueOf(tensor.get("data_type").getAsString().substring("DATA_TYPE_".length())),
        tensor.get("seed").getAsLong(),
        Json.longs(tensor, "shape"));
  }

  static String digest(Tensor tensor) {
    return sha256(tensor.toBytes());
  }

  static String sha256(byte[] bytes) {
    try {
      return HexFormat.of().formatHex(MessageDigest.getInstance("SHA-256").digest(bytes));
    } catch (NoSuchAlgorithmException e) {
      throw new IllegalStateException(e);
    }
  }
}
