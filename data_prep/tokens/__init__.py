"""Text to sentences and tokens: what scripts are like, the splitter, WordPiece."""
