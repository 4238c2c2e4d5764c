#include "kernel/attention.h"
