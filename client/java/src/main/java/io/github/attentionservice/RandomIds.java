package io.github.attentionservice;

import java.security.SecureRandom;
import java.util.HexFormat;

/** Ids that nobody can guess, and that never come twice. */
final class RandomIds {
  private RandomIds() {}

  /** 128 bits, in hexadecimal. */
  static String next() {
    byte[] bytes = new byte[16];
    new SecureRandom().nextBytes(bytes);
    return HexFormat.of().formatHex(bytes);
  }
}
