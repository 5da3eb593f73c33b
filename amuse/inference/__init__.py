"""From a recording or a stream of utterances to labels."""
