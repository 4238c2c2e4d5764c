package io.github.attentionservice;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.FloatBuffer;
import java.nio.ReadOnlyBufferException;
import java.util.BitSet;
import java.util.Random;
import org.junit.jupiter.api.Test;

class TensorTest {
  @Test
  void everyFloat16IsItselfAgain() {
    for (int bits = 0; bits < 1 << 16; ++bits) {
      float value = Float16.toFloat((short) bits);
      if (Float.isNaN(value)) {
        assertTrue(Float.isNaN(Float16.toFloat(Float16.fromFloat(value))));
      } else {
        assertEquals((short) bits, Float16.fromFloat(value), Integer.toHexString(bits));
      }
    }
  }

  @Test
  void everyBfloat16IsItselfAgain() {
    for (int bits = 0; bits < 1 << 16; ++bits) {
      float value = Bfloat16.toFloat((short) bits);
      if (Float.isNaN(value)) {
        assertTrue(Float.isNaN(Bfloat16.toFloat(Bfloat16.fromFloat(value))));
      } else {
        assertEquals((short) bits, Bfloat16.fromFloat(value), Integer.toHexString(bits));
      }
    }
  }

  @Test
  void knownFloat16() {
    assertEquals(0x3c00, Float16.fromFloat(1));
    assertEquals((short) 0xc000, Float16.fromFloat(-2));
    assertEquals(0x0001, Float16.fromFloat(0x1p-24f));
    assertEquals(0x0000, Float16.fromFloat(0x1p-25f));
    assertEquals(0x7bff, Float16.fromFloat(65504));
    assertEquals(0x7bff, Float16.fromFloat(65519.996f));
    assertEquals(0x7c00, Float16.fromFloat(65520));
    assertEquals((short) 0xfc00, Float16.fromFloat(Float.NEGATIVE_INFINITY));
    assertEquals(0x1.8p-24f * 2, Float16.toFloat((short) 3));
  }

  /** Halfway between two neighbours the even one is taken, and else the nearer one. */
  @Test
  void roundsToNearestTiesToEven() {
    for (int bits = 0; bits < 0x7bff; ++bits) {
      float low = Float16.toFloat((short) bits);
      float high = Float16.toFloat((short) (bits + 1));
      float middle = (low + high) / 2;
      int even = bits % 2 == 0 ? bits : bits + 1;
      assertEquals((short) even, Float16.fromFloat(middle));
      assertEquals((short) bits, Float16.fromFloat(Math.nextDown(middle)));
      assertEquals((short) (bits + 1), Float16.fromFloat(Math.nextUp(middle)));
    }
    for (int bits = 1; bits < 0x7f7f; ++bits) {
      float middle = Float.intBitsToFloat(bits << 16 | 0x8000);
      int even = bits % 2 == 0 ? bits : bits + 1;
      assertEquals((short) even, Bfloat16.fromFloat(middle));
      assertEquals((short) bits, Bfloat16.fromFloat(Math.nextDown(middle)));
      assertEquals((short) (bits + 1), Bfloat16.fromFloat(Math.nextUp(middle)));
    }
  }

  @Test
  void shapesThatCannotBe() {
    float[] four = new float[4];
    for (long[] shape :
        new long[][] {
          {5},
          {2, 3},
          {-2, -2},
          {},
          {Long.MAX_VALUE, 2},
          {1L << 32, 1L << 32},
          {1L << 62, 4},
          {0},
          {4, Long.MIN_VALUE}
        }) {
      assertThrows(IllegalArgumentException.class, () -> Tensor.of(four, shape));
    }
    assertEquals(0, Tensor.of(new float[0], 3, 0, Long.MAX_VALUE).size());
    assertEquals(1, Tensor.of(new float[1]).size());
    IllegalArgumentException error =
        assertThrows(IllegalArgumentException.class, () -> Tensor.of(four, 2, 3));
    assertEquals("shape [2, 3] of FLOAT32: got 4 elements, wanted 6", error.getMessage());
  }

  @Test
  void buffersFromPositionToLimit() {
    for (boolean direct : new boolean[] {false, true}) {
      ByteBuffer memory = direct ? ByteBuffer.allocateDirect(40) : ByteBuffer.allocate(40);
      FloatBuffer floats = memory.order(ByteOrder.BIG_ENDIAN).asFloatBuffer();
      for (int i = 0; i < 10; ++i) {
        floats.put(i, i + 0.5f);
      }
      floats.position(2).limit(6);
      Tensor tensor = Tensor.of(floats, 2, 2);
      assertArrayEquals(new float[] {2.5f, 3.5f, 4.5f, 5.5f}, tensor.toFloats());
      assertEquals(2, floats.position());
      ByteBuffer wire = ByteBuffer.wrap(tensor.toBytes()).order(ByteOrder.LITTLE_ENDIAN);
      assertEquals(3.5f, wire.getFloat(4));
      floats.put(3, 7);
      assertEquals(7, tensor.floatBuffer().get(1));
    }
  }

  @Test
  void bytesAreLittleEndianWhateverTheBuffersOrder() {
    byte[] one = {0, 0, (byte) 0x80, 0x3f};
    ByteBuffer bytes = ByteBuffer.wrap(one).order(ByteOrder.BIG_ENDIAN);
    assertArrayEquals(new float[] {1}, Tensor.ofBytes(DataType.FLOAT32, bytes, 1).toFloats());
  }

  @Test
  void viewsCannotBeWritten() {
    Tensor tensor = Tensor.of(new float[] {1, 2}, 2);
    assertThrows(ReadOnlyBufferException.class, () -> tensor.floatBuffer().put(0, 3));
    assertThrows(ReadOnlyBufferException.class, () -> tensor.byteBuffer().put(0, (byte) 3));
    tensor.shape()[0] = 7;
    assertEquals(2, tensor.shape()[0]);
  }

  @Test
  void viewsOfOtherTypes() {
    Tensor half = Tensor.ofFloat16(Float16.fromFloats(new float[] {1, -2}), 2);
    assertThrows(IllegalStateException.class, half::floatBuffer);
    assertThrows(IllegalStateException.class, half::doubleBuffer);
    assertEquals(0x3c00, half.shortBuffer().get(0));
    assertArrayEquals(new float[] {1, -2}, half.toFloats());
    assertArrayEquals(new double[] {1, -2}, half.toDoubles());
    Tensor mask = Tensor.of(new boolean[] {true, false}, 2);
    assertThrows(IllegalStateException.class, mask::toFloats);
    assertArrayEquals(new byte[] {1, 0}, mask.toBytes());
    assertArrayEquals(new double[] {0.1}, Tensor.of(new double[] {0.1}, 1).toDoubles());
    assertEquals("Tensor BOOL [2]", mask.toString());
    assertFalse(mask.byteBuffer().hasArray());
  }

  @Test
  void bitsFillBytes() {
    byte[] packed = BitSet.valueOf(new long[] {0b10010_01001001}).toByteArray();
    Tensor tensor = Tensor.ofBits(packed, 3, 5);
    assertEquals("Tensor BITS [3, 5]", tensor.toString());
    assertEquals(15, tensor.size());
    assertEquals(2, tensor.byteSize());
    packed[1] = 0;
    assertArrayEquals(new byte[] {0b1001001, 0}, tensor.toBytes());
    assertThrows(IllegalStateException.class, tensor::toFloats);
    assertEquals(0, Tensor.ofBits(new byte[0], 0, 3).byteSize());
    assertEquals(2, Tensor.ofBits(packed, 16).byteSize());
    for (long elements : new long[] {8, 17}) {
      IllegalArgumentException error =
          assertThrows(IllegalArgumentException.class, () -> Tensor.ofBits(new byte[2], elements));
      String wanted = elements == 8 ? "wanted 1" : "wanted 3";
      assertEquals("shape [" + elements + "] of BITS: got 2 bytes, " + wanted, error.getMessage());
    }
  }

  @Test
  void integersOfMasks() {
    Random random = new Random(1);
    int[] ints = random.ints(9).toArray();
    long[] longs = random.longs(9).toArray();
    ByteBuffer four = Tensor.of(ints, 3, 3).byteBuffer();
    ByteBuffer eight = Tensor.of(longs, 9).byteBuffer();
    for (int i = 0; i < 9; ++i) {
      assertEquals(ints[i], four.getInt(4 * i));
      assertEquals(longs[i], eight.getLong(8 * i));
    }
    assertArrayEquals(new byte[] {-1, 2}, Tensor.of(new byte[] {-1, 2}, 2).toBytes());
  }
}
