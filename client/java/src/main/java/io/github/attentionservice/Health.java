package io.github.attentionservice;

/** What a health check says of a service. */
public enum Health {
  /** The server does not say. */
  UNKNOWN,
  /** It takes calls. */
  SERVING,
  /** It takes no calls: it is starting or draining. */
  NOT_SERVING
}
