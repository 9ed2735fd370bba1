//! One PutMetricData at the end of a run.
