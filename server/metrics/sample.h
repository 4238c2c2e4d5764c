// Metrics that are read when they are scraped, not counted as things happen.
#ifndef ATTENTION_SERVER_METRICS_SAMPLE_H_
#define ATTENTION_SERVER_METRICS_SAMPLE_H_

#include <prometheus/client_metric.h>
#include <prometheus/metric_family.h>

#include <string>
#include <utility>
#include <vector>

namespace attention::server {

// A value and the labels that tell it from others of its family.
struct Sample {
  double value;
  std::vector<prometheus::ClientMetric::Label> labels;
};

// A family of gauges: values that rise and fall.
inline prometheus::MetricFamily GaugeFamily(
    std::string name, std::string help, const std::vector<Sample>& samples) {
  prometheus::MetricFamily family{
      std::move(name), std::move(help), prometheus::MetricType::Gauge, {}};
  for (const Sample& sample : samples) {
    prometheus::ClientMetric metric;
    metric.label = sample.labels;
    metric.gauge.value = sample.value;
    family.metric.push_back(std::move(metric));
  }
  return family;
}

// A family of counters: values that never fall while the process lives.
inline prometheus::MetricFamily CounterFamily(
    std::string name, std::string help, const std::vector<Sample>& samples) {
  prometheus::MetricFamily family{
      std::move(name), std::move(help), prometheus::MetricType::Counter, {}};
  for (const Sample& sample : samples) {
    prometheus::ClientMetric metric;
    metric.label = sample.labels;
    metric.counter.value = sample.value;
    family.metric.push_back(std::move(metric));
  }
  return family;
}

}  // namespace attention::server

#endif  // ATTENTION_SERVER_METRICS_SAMPLE_H_
