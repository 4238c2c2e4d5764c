package io.github.attentionservice.examples;

import java.util.HashMap;
import java.util.Map;

/** Flags of a program: {@code --name=value} or {@code --name value}. */
final class Flags {
  private final Map<String, String> values = new HashMap<>();

  Flags(String[] arguments) {
    for (int i = 0; i < arguments.length; ++i) {
      if (!arguments[i].startsWith("--")) {
        throw new IllegalArgumentException("got " + arguments[i] + ", wanted a flag");
      }
      String flag = arguments[i].substring(2);
      int equals = flag.indexOf('=');
      if (equals >= 0) {
        values.put(flag.substring(0, equals), flag.substring(equals + 1));
      } else if (i + 1 < arguments.length) {
        values.put(flag, arguments[++i]);
      } else {
        throw new IllegalArgumentException("--" + flag + " wants a value");
      }
    }
  }

  String get(String name) {
    String value = values.get(name);
    if (value == null) {
      throw new IllegalArgumentException("--" + name + " is missing");
    }
    return value;
  }
}
