package io.github.attentionservice;

import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.net.UnknownHostException;

/** What can be said of a server's address before it is connected to. */
final class Targets {
  private Targets() {}

  /** False for what only looks like one. */
  static boolean canBeOne(String target) {
    return !target.isEmpty() && !target.startsWith("http://") && !target.startsWith("https://");
  }

  /** Whether it is the number of another machine. Of names only the connection can tell. */
  static boolean isElsewhere(String target) {
    if (target.startsWith("unix:")) {
      return false;
    }
    InetAddress address = literal(hostOf(target));
    return address != null && !address.isLoopbackAddress() && !address.isAnyLocalAddress();
  }

  static boolean isLoopback(InetSocketAddress server) {
    if (!server.isUnresolved()) {
      return server.getAddress().isLoopbackAddress();
    }
    String host = server.getHostString();
    InetAddress address = literal(host);
    return host.equalsIgnoreCase("localhost") || address != null && address.isLoopbackAddress();
  }

  private static String hostOf(String target) {
    String authority = target.substring(target.lastIndexOf('/') + 1);
    if (authority.startsWith("dns:")) {
      authority = authority.substring("dns:".length());
    }
    if (authority.startsWith("[")) {
      return authority.substring(1, Math.max(authority.indexOf(']'), 1));
    }
    int colon = authority.lastIndexOf(':');
    return colon < 0 ? authority : authority.substring(0, colon);
  }

  /** Null for a name. Asks nobody. */
  private static InetAddress literal(String host) {
    boolean number = host.matches("[0-9.]+") || host.contains(":");
    if (!number) {
      return null;
    }
    try {
      return InetAddress.getByName(host);
    } catch (UnknownHostException e) {
      return null;
    }
  }
}
