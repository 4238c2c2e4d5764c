package io.github.attentionservice;

import java.time.Instant;
import java.util.List;

/**
 * What the server tells of a session.
 *
 * @param id its id
 * @param config with every default filled in
 * @param lengths the tokens of each layer
 * @param expireTime when its lease is over, by the server's clock, unless something uses it
 * @param firstTokens the first token that each layer keeps
 * @param leastLengths the least length above 0 that each layer can be truncated to
 * @param incarnation tells it from others that had or will have its id
 */
public record SessionInfo(
    String id,
    SessionConfig config,
    List<Long> lengths,
    Instant expireTime,
    List<Long> firstTokens,
    List<Long> leastLengths,
    long incarnation) {

  static SessionInfo of(io.github.attentionservice.proto.attention.Session session) {
    return new SessionInfo(
        session.getId(),
        new SessionConfig(session.getConfig()),
        session.getLengthsList(),
        Instant.ofEpochSecond(
            session.getExpireTime().getSeconds(), session.getExpireTime().getNanos()),
        session.getFirstTokensList(),
        session.getLeastLengthsList(),
        session.getIncarnation());
  }
}
