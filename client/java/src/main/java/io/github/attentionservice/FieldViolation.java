package io.github.attentionservice;

/**
 * A field of a request that is wrong.
 *
 * @param field its path, such as {@code key.shape}
 * @param description what came and what was wanted
 */
public record FieldViolation(String field, String description) {}
