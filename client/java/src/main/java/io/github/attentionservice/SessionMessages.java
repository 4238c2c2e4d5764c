package io.github.attentionservice;

import io.github.attentionservice.proto.attention.AppendKeyValuesRequest;

/** Messages of sessions that hold tensors. */
final class SessionMessages {
  // StepItem has a name that the client's own class has, too.
  private static final int QUERY =
      io.github.attentionservice.proto.attention.StepItem.QUERY_FIELD_NUMBER;
  private static final int MASK =
      io.github.attentionservice.proto.attention.StepItem.MASK_FIELD_NUMBER;
  private static final int OPTIONS =
      io.github.attentionservice.proto.attention.StepItem.OPTIONS_FIELD_NUMBER;
  private static final int NOT_CAUSAL =
      io.github.attentionservice.proto.attention.StepItem.NOT_CAUSAL_FIELD_NUMBER;
  private static final int MASK_BEGIN =
      io.github.attentionservice.proto.attention.StepItem.MASK_BEGIN_FIELD_NUMBER;
  private static final int INDICES =
      io.github.attentionservice.proto.attention.StepItem.INDICES_FIELD_NUMBER;
  private static final int SINKS =
      io.github.attentionservice.proto.attention.StepItem.SINKS_FIELD_NUMBER;

  private SessionMessages() {}

  /** The fields that AppendKeyValuesRequest and StepItem have with the same numbers. */
  private static WireMessage begin(
      SessionState session, int layer, long expectedLength, String requestId) {
    WireMessage message =
        new WireMessage()
            .string(AppendKeyValuesRequest.ID_FIELD_NUMBER, session.id())
            .int64(AppendKeyValuesRequest.LAYER_FIELD_NUMBER, layer);
    if (expectedLength >= 0) {
      message.presentInt64(AppendKeyValuesRequest.EXPECTED_LENGTH_FIELD_NUMBER, expectedLength);
    }
    return message.string(AppendKeyValuesRequest.REQUEST_ID_FIELD_NUMBER, requestId);
  }

  private static WireMessage end(WireMessage message, SessionState session) {
    return message.uint64(AppendKeyValuesRequest.INCARNATION_FIELD_NUMBER, session.incarnation());
  }

  /** An append of all tokens, or of [begin, end) where `key` has the axis of tokens. */
  static WireMessage append(
      SessionState session, int layer, SessionState.Claim claim, AppendPiece piece) {
    WireMessage message = begin(session, layer, claim.expectedLength(), claim.requestId());
    piece.addTo(
        message,
        AppendKeyValuesRequest.KEY_FIELD_NUMBER,
        AppendKeyValuesRequest.VALUE_FIELD_NUMBER);
    return end(message, session);
  }

  static WireMessage step(
      StepItem item, SessionState session, long expectedLength, String requestId) {
    WireMessage message =
        begin(session, item.layer, expectedLength, requestId)
            .tensor(AppendKeyValuesRequest.KEY_FIELD_NUMBER, item.key)
            .tensor(AppendKeyValuesRequest.VALUE_FIELD_NUMBER, item.value);
    if (item.query != null) {
      message.tensor(QUERY, item.query).tensor(MASK, item.options.mask);
      if (!item.options.options.isDefault()) {
        message.message(OPTIONS, item.options.options.message());
      }
      message.bool(NOT_CAUSAL, item.options.notCausal).int64(MASK_BEGIN, item.options.maskBegin);
    }
    end(message, session);
    if (item.query != null) {
      message.tensor(INDICES, item.options.indices).tensor(SINKS, item.options.rowSinks);
    }
    return message;
  }
}
