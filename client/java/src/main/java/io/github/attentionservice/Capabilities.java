package io.github.attentionservice;

import io.github.attentionservice.proto.attention.GetCapabilitiesResponse;
import java.util.List;
import java.util.Objects;
import java.util.stream.Stream;

/**
 * What a server can do, and its limits. 0 where it does not tell a limit.
 *
 * @param version of the server
 * @param simdTarget the vector instructions in use, such as {@code AVX3}
 * @param threads that compute
 * @param dataTypes accepted for query, key and value
 * @param mathModes accepted
 * @param maxRequestBytes the largest request message
 * @param maxResponseBytes the largest answer
 * @param keyBlock keys per block: partial results merge to the same bits only at multiples of it
 * @param maxHeadSize the largest D and Dv
 * @param maxHeads the most query heads
 * @param maxBatch the largest batch
 * @param maxBatchHeads the largest B * Hkv
 * @param maxWork the most multiply-adds of one request
 * @param maxChunkBytes the largest message of a stream after its header
 */
public record Capabilities(
    String version,
    String simdTarget,
    int threads,
    List<DataType> dataTypes,
    List<MathMode> mathModes,
    long maxRequestBytes,
    long maxResponseBytes,
    int keyBlock,
    long maxHeadSize,
    long maxHeads,
    long maxBatch,
    long maxBatchHeads,
    long maxWork,
    long maxChunkBytes) {

  static Capabilities of(GetCapabilitiesResponse answer) {
    return new Capabilities(
        answer.getVersion(),
        answer.getSimdTarget(),
        answer.getThreads(),
        answer.getDataTypesValueList().stream().map(DataType::of).filter(Objects::nonNull).toList(),
        answer.getMathModesValueList().stream()
            .flatMap(number -> Stream.of(MathMode.values()).filter(mode -> mode.number() == number))
            .toList(),
        answer.getMaxRequestBytes(),
        answer.getMaxResponseBytes(),
        answer.getKeyBlock(),
        answer.getMaxHeadSize(),
        answer.getMaxHeads(),
        answer.getMaxBatch(),
        answer.getMaxBatchHeads(),
        answer.getMaxWork(),
        answer.getMaxChunkBytes());
  }
}
