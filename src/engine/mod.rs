//! Running a plan: lock, receipt, and `check → apply → check`.
