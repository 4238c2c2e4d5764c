package io.github.attentionservice;

import java.nio.Buffer;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.DoubleBuffer;
import java.nio.FloatBuffer;
import java.nio.IntBuffer;
import java.nio.LongBuffer;
import java.nio.ShortBuffer;
import java.util.Arrays;

/**
 * A dense tensor, row-major.
 *
 * <p>A tensor does not copy the array or buffer that it is made of: what is written there later
 * shows. Elements that are sent must stay as they are until the call has returned, or its future is
 * done. The elements of an answer are its own.
 *
 * <p>Of a buffer, a tensor takes the elements from its position to its limit, and moves neither.
 */
public final class Tensor {
  private final DataType type;
  private final long[] shape;
  private final long size;
  // From index 0 to the limit. A ByteBuffer is little-endian, whatever the type.
  private final Buffer elements;

  private Tensor(DataType type, Buffer elements, long[] shape) {
    this.type = type;
    this.shape = shape.clone();
    this.size = count(shape);
    this.elements = elements;
    long wanted = elements instanceof ByteBuffer ? byteSize() : size;
    if (elements.limit() != wanted) {
      throw new IllegalArgumentException(
          String.format(
              "shape %s of %s: got %d %s, wanted %d",
              Arrays.toString(shape),
              type,
              elements.limit(),
              elements instanceof ByteBuffer ? "bytes" : "elements",
              wanted));
    }
  }

  /** Throws where the shape cannot be one, or has more bytes than a number can tell. */
  private static long count(long[] shape) {
    boolean empty = false;
    for (long axis : shape) {
      if (axis < 0) {
        throw new IllegalArgumentException("negative axis in shape " + Arrays.toString(shape));
      }
      empty |= axis == 0;
    }
    if (empty) {
      return 0;
    }
    long size = 1;
    for (long axis : shape) {
      if (axis > Long.MAX_VALUE / 8 / size) {
        throw new IllegalArgumentException("shape too large: " + Arrays.toString(shape));
      }
      size *= axis;
    }
    return size;
  }

  /**
   * A FLOAT32 tensor.
   *
   * @param elements row-major
   * @param shape the axes, outermost first
   * @return a tensor over this array
   */
  public static Tensor of(float[] elements, long... shape) {
    return new Tensor(DataType.FLOAT32, FloatBuffer.wrap(elements), shape);
  }

  /**
   * A FLOAT32 tensor.
   *
   * @param elements row-major, direct or not
   * @param shape the axes, outermost first
   * @return a tensor over this buffer
   */
  public static Tensor of(FloatBuffer elements, long... shape) {
    return new Tensor(DataType.FLOAT32, elements.slice(), shape);
  }

  /**
   * A FLOAT64 tensor.
   *
   * @param elements row-major
   * @param shape the axes, outermost first
   * @return a tensor over this array
   */
  public static Tensor of(double[] elements, long... shape) {
    return new Tensor(DataType.FLOAT64, DoubleBuffer.wrap(elements), shape);
  }

  /**
   * A FLOAT64 tensor.
   *
   * @param elements row-major, direct or not
   * @param shape the axes, outermost first
   * @return a tensor over this buffer
   */
  public static Tensor of(DoubleBuffer elements, long... shape) {
    return new Tensor(DataType.FLOAT64, elements.slice(), shape);
  }

  /**
   * A FLOAT16 tensor. {@link Float16} converts.
   *
   * @param bits the bits of the elements, row-major
   * @param shape the axes, outermost first
   * @return a tensor over this array
   */
  public static Tensor ofFloat16(short[] bits, long... shape) {
    return new Tensor(DataType.FLOAT16, ShortBuffer.wrap(bits), shape);
  }

  /**
   * A FLOAT16 tensor. {@link Float16} converts.
   *
   * @param bits the bits of the elements, row-major, direct or not
   * @param shape the axes, outermost first
   * @return a tensor over this buffer
   */
  public static Tensor ofFloat16(ShortBuffer bits, long... shape) {
    return new Tensor(DataType.FLOAT16, bits.slice(), shape);
  }

  /**
   * A BFLOAT16 tensor. {@link Bfloat16} converts.
   *
   * @param bits the bits of the elements, row-major
   * @param shape the axes, outermost first
   * @return a tensor over this array
   */
  public static Tensor ofBfloat16(short[] bits, long... shape) {
    return new Tensor(DataType.BFLOAT16, ShortBuffer.wrap(bits), shape);
  }

  /**
   * A BFLOAT16 tensor. {@link Bfloat16} converts.
   *
   * @param bits the bits of the elements, row-major, direct or not
   * @param shape the axes, outermost first
   * @return a tensor over this buffer
   */
  public static Tensor ofBfloat16(ShortBuffer bits, long... shape) {
    return new Tensor(DataType.BFLOAT16, bits.slice(), shape);
  }

  /**
   * A BOOL tensor, for masks: true is a key that the query sees. The array is copied.
   *
   * @param elements row-major
   * @param shape the axes, outermost first
   * @return a tensor
   */
  public static Tensor of(boolean[] elements, long... shape) {
    byte[] bytes = new byte[elements.length];
    for (int i = 0; i < bytes.length; ++i) {
      bytes[i] = (byte) (elements[i] ? 1 : 0);
    }
    return ofBytes(DataType.BOOL, ByteBuffer.wrap(bytes), shape);
  }

  /**
   * A BITS tensor, for masks: one bit for each element, an eighth of a BOOL tensor. A request with
   * such a mask is sent as one message, whatever its size. Buffers go by {@link #ofBytes}.
   *
   * @param packed the elements of the whole tensor, row-major, without gaps between rows: element i
   *     is bit i % 8, counted from the least significant, of byte i / 8, as in {@link
   *     java.util.BitSet#toByteArray}, which leaves out bytes of 0 at the end
   * @param shape the axes, outermost first
   * @return a tensor over this array
   */
  public static Tensor ofBits(byte[] packed, long... shape) {
    return ofBytes(DataType.BITS, ByteBuffer.wrap(packed), shape);
  }

  /**
   * An INT8 tensor, for masks that are added to the scores.
   *
   * @param elements row-major
   * @param shape the axes, outermost first
   * @return a tensor over this array
   */
  public static Tensor of(byte[] elements, long... shape) {
    return ofBytes(DataType.INT8, ByteBuffer.wrap(elements), shape);
  }

  /**
   * An INT32 tensor, for indices, and for masks that are added to the scores.
   *
   * @param elements row-major
   * @param shape the axes, outermost first
   * @return a tensor over this array
   */
  public static Tensor of(int[] elements, long... shape) {
    return new Tensor(DataType.INT32, IntBuffer.wrap(elements), shape);
  }

  /**
   * An INT64 tensor, for indices, and for masks that are added to the scores.
   *
   * @param elements row-major
   * @param shape the axes, outermost first
   * @return a tensor over this array
   */
  public static Tensor of(long[] elements, long... shape) {
    return new Tensor(DataType.INT64, LongBuffer.wrap(elements), shape);
  }

  /**
   * A tensor of any type from its bytes.
   *
   * @param type the type of the elements
   * @param bytes the elements, row-major, little-endian whatever the order of the buffer; direct
   *     (such as a mapped file) or not
   * @param shape the axes, outermost first
   * @return a tensor over this buffer
   */
  public static Tensor ofBytes(DataType type, ByteBuffer bytes, long... shape) {
    return new Tensor(type, bytes.slice().order(ByteOrder.LITTLE_ENDIAN), shape);
  }

  /**
   * The type of the elements.
   *
   * @return never null
   */
  public DataType dataType() {
    return type;
  }

  /**
   * The axes, outermost first.
   *
   * @return a copy
   */
  public long[] shape() {
    return shape.clone();
  }

  /**
   * The number of elements.
   *
   * @return the product of the shape
   */
  public long size() {
    return size;
  }

  /**
   * The size of all elements.
   *
   * @return bytes
   */
  public long byteSize() {
    return type == DataType.BITS ? (size + 7) / 8 : size * type.bytes();
  }

  /**
   * The elements of a FLOAT32 tensor, without a copy.
   *
   * @return a read-only view
   * @throws IllegalStateException if the type is another
   */
  public FloatBuffer floatBuffer() {
    check(type == DataType.FLOAT32, "FLOAT32");
    return elements instanceof ByteBuffer bytes
        ? littleEndian(bytes).asFloatBuffer()
        : ((FloatBuffer) elements).asReadOnlyBuffer();
  }

  /**
   * The elements of a FLOAT64 tensor, without a copy.
   *
   * @return a read-only view
   * @throws IllegalStateException if the type is another
   */
  public DoubleBuffer doubleBuffer() {
    check(type == DataType.FLOAT64, "FLOAT64");
    return elements instanceof ByteBuffer bytes
        ? littleEndian(bytes).asDoubleBuffer()
        : ((DoubleBuffer) elements).asReadOnlyBuffer();
  }

  /**
   * The bits of a FLOAT16 or BFLOAT16 tensor, without a copy.
   *
   * @return a read-only view
   * @throws IllegalStateException if the type is another
   */
  public ShortBuffer shortBuffer() {
    check(isHalf(), "FLOAT16 or BFLOAT16");
    return elements instanceof ByteBuffer bytes
        ? littleEndian(bytes).asShortBuffer()
        : ((ShortBuffer) elements).asReadOnlyBuffer();
  }

  /**
   * The bytes of the elements, little-endian. Without a copy where the tensor is an answer's or
   * made of bytes.
   *
   * @return a read-only buffer, of little-endian order
   */
  public ByteBuffer byteBuffer() {
    return littleEndian(elements instanceof ByteBuffer bytes ? bytes : ByteBuffer.wrap(toBytes()));
  }

  /**
   * The bytes of the elements, little-endian.
   *
   * @return a copy
   * @throws IllegalStateException if an array cannot hold so many
   */
  public byte[] toBytes() {
    byte[] bytes = new byte[arraySize(byteSize())];
    copyBytes(0, bytes, 0, bytes.length);
    return bytes;
  }

  /**
   * The elements of a tensor of floats, converted where they are not {@code float}: a FLOAT64 is
   * rounded.
   *
   * @return a copy
   * @throws IllegalStateException if the elements are no floats, or an array cannot hold so many
   */
  public float[] toFloats() {
    float[] floats = new float[arraySize(size)];
    switch (type) {
      case FLOAT32 -> floatBuffer().get(floats);
      case FLOAT64 -> {
        DoubleBuffer from = doubleBuffer();
        for (int i = 0; i < floats.length; ++i) {
          floats[i] = (float) from.get(i);
        }
      }
      case FLOAT16 -> {
        ShortBuffer from = shortBuffer();
        for (int i = 0; i < floats.length; ++i) {
          floats[i] = Float16.toFloat(from.get(i));
        }
      }
      case BFLOAT16 -> {
        ShortBuffer from = shortBuffer();
        for (int i = 0; i < floats.length; ++i) {
          floats[i] = Bfloat16.toFloat(from.get(i));
        }
      }
      default -> check(false, "a type of floats");
    }
    return floats;
  }

  /**
   * The elements of a tensor of floats, converted where they are not {@code double}, which is
   * exact.
   *
   * @return a copy
   * @throws IllegalStateException if the elements are no floats, or an array cannot hold so many
   */
  public double[] toDoubles() {
    double[] doubles = new double[arraySize(size)];
    if (type == DataType.FLOAT64) {
      doubleBuffer().get(doubles);
      return doubles;
    }
    float[] floats = toFloats();
    for (int i = 0; i < doubles.length; ++i) {
      doubles[i] = floats[i];
    }
    return doubles;
  }

  /** Type and shape, no elements. */
  @Override
  public String toString() {
    return "Tensor " + type + " " + Arrays.toString(shape);
  }

  int rank() {
    return shape.length;
  }

  long axis(int number) {
    return shape[number];
  }

  /** The array that holds the bytes, with {@link #arrayOffset}; null if there is none. */
  byte[] array() {
    return elements instanceof ByteBuffer bytes && bytes.hasArray() ? bytes.array() : null;
  }

  int arrayOffset() {
    return ((ByteBuffer) elements).arrayOffset();
  }

  /** Copies bytes; `offset` and `length` are multiples of the element's size. */
  void copyBytes(long offset, byte[] to, int at, int length) {
    if (elements instanceof ByteBuffer bytes) {
      bytes.get((int) offset, to, at, length);
      return;
    }
    ByteBuffer target = ByteBuffer.wrap(to, at, length).slice().order(ByteOrder.LITTLE_ENDIAN);
    int first = (int) (offset / type.bytes());
    int count = length / type.bytes();
    if (elements instanceof FloatBuffer floats) {
      target.asFloatBuffer().put(0, floats, first, count);
    } else if (elements instanceof DoubleBuffer doubles) {
      target.asDoubleBuffer().put(0, doubles, first, count);
    } else if (elements instanceof ShortBuffer shorts) {
      target.asShortBuffer().put(0, shorts, first, count);
    } else if (elements instanceof IntBuffer ints) {
      target.asIntBuffer().put(0, ints, first, count);
    } else {
      target.asLongBuffer().put(0, (LongBuffer) elements, first, count);
    }
  }

  private boolean isHalf() {
    return type == DataType.FLOAT16 || type == DataType.BFLOAT16;
  }

  private void check(boolean right, String wanted) {
    if (!right) {
      throw new IllegalStateException("the elements are " + type + ", not " + wanted);
    }
  }

  private static int arraySize(long size) {
    if (size > Integer.MAX_VALUE - 8) {
      throw new IllegalStateException("an array cannot hold " + size + " elements");
    }
    return (int) size;
  }

  private static ByteBuffer littleEndian(ByteBuffer bytes) {
    return bytes.asReadOnlyBuffer().order(ByteOrder.LITTLE_ENDIAN);
  }
}
