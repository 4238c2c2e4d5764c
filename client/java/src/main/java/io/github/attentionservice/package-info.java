/**
 * A client of the attention service: {@link io.github.attentionservice.AttentionClient} computes
 * attention over the network, and {@link io.github.attentionservice.Session} keeps keys and values
 * in the server between calls.
 *
 * <p>Package {@code io.github.attentionservice.proto}, and those below it, are the messages on the
 * wire. They are no part of the interface.
 */
package io.github.attentionservice;
